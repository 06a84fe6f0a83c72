"""What the processors of all families share: times of frames, how many tokens a video keeps, cache keys, records.

vLLM must know a prompt's length before it encodes anything, so what a video keeps is a number that follows from its
size alone: the pruner's budget().
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser, VideoProcessorItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from tango.models.family import timestamps_of
from tango.pruners.base import Pruner
from tango.runs.settings import fingerprint
from tango_vllm import settings, usage

log = logging.getLogger("vllm.tango")  # below "vllm", so that its format and level hold here too
TIMES = "video_times"  # name of the field that takes frame times from the processor to the model


@functools.cache
def counters() -> tuple[Any, Any]:
    """Prometheus counters of video tokens before and after pruning, which vLLM's own /metrics shows with its own."""
    from prometheus_client import Counter

    return (
        Counter("tango:video_tokens_before", "Video tokens of requests before pruning."),
        Counter("tango:video_tokens_after", "Video tokens of requests after pruning."),
    )


@functools.cache
def method_gauge() -> Any:
    """What a client can tell the method by, and that its settings are those it means."""
    from prometheus_client import Gauge

    return Gauge("tango:method", "The method that videos are pruned with; 1.", ["method", "settings"])


class DefaultMetadata:
    """Mixin of a parser for models that want the times of frames: a video that comes without gets default ones."""

    def _get_video_with_metadata(self, video: Any) -> tuple[Any, dict[str, Any]]:
        frames, metadata = super()._get_video_with_metadata(video)  # type: ignore[misc]
        if len(getattr(frames, "media", frames)) == 0:
            raise ValueError("a video has no frames")
        return frames, {} if metadata is None else metadata


class Parser(DefaultMetadata, MultiModalDataParser):
    """vLLM's parser with that."""


class PlainInfo:
    """Mixin of what vLLM must know of models that take frames of one size: times of frames, and how long a video is."""

    def get_data_parser(self) -> Parser:
        return Parser(expected_hidden_size=self._get_expected_hidden_size(), video_needs_metadata=True)  # type: ignore[attr-defined]

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """A video may fill a prompt: vLLM's own count is that of few frames, and longer videos would be refused."""
        return {"image": self.get_max_image_tokens(), "video": seq_len}  # type: ignore[attr-defined]


def frame_times(metadata: Mapping[str, Any], frames: int) -> Tensor:
    """Seconds of each frame (F,), fp64: `timestamps` where a loader gives them, else index by rate; else empty.

    Raises:
        ValueError: not one time a frame.
    """
    times = metadata.get("timestamps")
    if times is None:
        (times,) = timestamps_of([{"fps": None, "frames_indices": None, **metadata}]) or [None]
    if times is None:
        return torch.zeros(0)
    times = torch.as_tensor(times, dtype=torch.float64).flatten()
    if len(times) != frames:
        raise ValueError(f"{len(times)} times for a video of {frames} frames; one a frame is needed")
    return times


def with_defaults(metadata: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """What transformers' processors must know of a video; without a rate, theirs: 24 frames a second, all shown."""
    told = {name: value for name, value in metadata.items() if name != "timestamps"}
    if told.get("fps") and told.get("frames_indices") is not None:
        return {"total_num_frames": frames} | told
    if "timestamps" in metadata:
        raise ValueError("the timestamps of a video need its fps, frames_indices and total_num_frames beside them")
    return {"total_num_frames": frames, "fps": 24.0, "frames_indices": list(range(frames)), "duration": frames / 24}


@dataclasses.dataclass
class VideoPlaceholders(PromptUpdateDetails):
    """The tokens that stand in a prompt for a pruned video, and how many it would have unpruned."""

    before: int = 0
    after: int = 0


class PrunedVideos:
    """Mixin of a family's processor."""

    info: Any

    @functools.cached_property
    def pruner(self) -> Pruner:
        """The method that the model prunes with."""
        found = settings.from_environment_or_config(self.info.get_hf_config())
        method_gauge().labels(found.name, fingerprint(found)).set(1)
        return found

    counting = True
    counted: dict[str, int] | None = None  # of the request in work; there is one at a time

    # -- the prompt ----------------------------------------------------------------------------------------------

    def placeholders(self, item: Any) -> VideoPlaceholders:
        """What stands in a prompt for a video, by what the processor made of it."""
        raise NotImplementedError

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        """vLLM's own prompt updates, but for those of videos."""
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        (target,) = (update.target for update in updates if update.modality == "video")
        others = [update for update in updates if update.modality != "video"]

        def replacement(index: int) -> VideoPlaceholders:
            return self.placeholders(out_mm_kwargs["video"][index])

        return [*others, PromptReplacement(modality="video", target=target, replacement=replacement)]

    # -- records and keys ----------------------------------------------------------------------------------------

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        self.counting = False  # vLLM's own trial requests are nobody's
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.counting = True

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        """vLLM's keys of items; those of videos are other ones for other methods or settings."""
        hashes = dict(super()._get_mm_hashes(inputs))  # type: ignore[misc]
        if "video" in hashes:
            salt = fingerprint(self.pruner)
            hashes["video"] = [hashlib.sha256(f"{salt} {one}".encode()).hexdigest() for one in hashes["video"]]
        return hashes

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """A prompt with its data, and beside them what a response tells of its videos (usage.py)."""
        self.counted = None
        prompt = super().apply(*args, **kwargs)  # type: ignore[misc]
        return prompt | {usage.KEY: self.counted} if self.counted is not None else prompt

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        if self.counting:
            self._record([updates[0].content for updates in mm_res.prompt_updates.get("video", ())], mm_items)
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)  # type: ignore[misc]

    def _record(self, videos: Sequence[VideoPlaceholders], mm_items: Any) -> None:
        """A line in the log and two counters for each request with videos."""
        if videos:
            each = ", ".join(f"{video.before} to {video.after}" for video in videos)
            log.info("%s: video tokens of a request: %s", self.pruner.name, each)
            totals = [sum(video.before for video in videos), sum(video.after for video in videos)]
            for counter, total in zip(counters(), totals, strict=True):
                counter.inc(total)
            usage.install()
            self.counted = dict(zip(usage.NAMES, totals, strict=True))
        elif mm_items.get_all_counts().get("image", 0) > 1:
            _warn_of_images(self.pruner.name)

    # -- times ---------------------------------------------------------------------------------------------------

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**fields, TIMES: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Any) -> Any:
        """Frames for the processor, and their times beside its output."""
        times, videos = [], mm_items.get("video")
        if isinstance(videos, VideoProcessorItems):
            pairs = [videos.get(index) for index in range(videos.get_count())]
            times = [frame_times(metadata, len(frames)) for frames, metadata in pairs]
            plain = [(frames, with_defaults(metadata, len(frames))) for frames, metadata in pairs]
            mm_items = type(mm_items)({**mm_items, "video": VideoProcessorItems(plain, [one for _, one in plain])})
        elif videos is not None:
            raise ValueError("a video that comes as embeddings cannot be pruned: send its frames or a URL")
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)  # type: ignore[misc]
        if times:
            inputs.passthrough_data[TIMES] = times
        return inputs


@functools.cache
def _warn_of_images(method: str) -> None:
    log.warning(
        "%s prunes videos, and a request came with several images and no video: images are not pruned. "
        "A client that sends frames as images must send the video instead (type: video_url)",
        method,
    )
