"""Qwen2.5-VL, Qwen3-VL, Qwen3.5 and Qwen3-Omni in lmms-eval: upstream's arguments, its choice of frames and their size.

Upstream has two versions of each model that differ in detail. These follow the one it runs by default, for lmms-eval's
chat interface, whose frames and sizes are those of qwen-vl-utils; system and reasoning prompt hold in both interfaces.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from lmms_eval.api.instance import Instance

from tango.inference.chat import TIMES, PixelLimits
from tango.runs.run import ArgumentError
from tango_lmms_eval.arguments import QWEN, QWEN_OWN, QWEN_THINKING, check_fixed
from tango_lmms_eval.models import PrunedModel, for_chat

PAIR = 2  # frames that the vision tower sees as one
LEAST_FRAMES, MOST_FRAMES = 4, 768  # of a video that is sampled by frames a second
OMNI = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
RATE = 2.0  # frames a second where only the pixels of the whole video are given


def frame_indices(total: int, seconds: float, *, count: int, rate: float | None, most: int) -> list[int]:
    """Frames to show of `total` that last `seconds`: an even number, evenly spread with the first and the last.

    count: how many, if there are as many. rate: frames a second instead, between 4 and `most`. A video of one frame
    gives that.
    """
    wanted = count if rate is None else min(max(seconds * rate, LEAST_FRAMES), most // PAIR * PAIR)
    frames = min(int(min(wanted, total) // PAIR * PAIR) or PAIR, total)
    indices: list[int] = torch.linspace(0, total - 1, frames).round().long().tolist()
    return indices


class QwenVL(PrunedModel):
    r"""What these families share.

    Args (as --model_args name=value,..), beside those of PrunedModel; defaults are upstream's:
        max_num_frames: frames sampled evenly from each video.
        fps: frames a second instead; at most 768 with Qwen2.5-VL, max_num_frames with the others.
        min_pixels, max_pixels: of a frame or an image. total_pixels: of a video, shared by its pairs of frames. A frame
            has at most 768 tokens, whatever max_pixels is.
        system_prompt: said first, unless the task has one of its own; none leaves it to the chat template.
        reasoning_prompt: appended to the question; \n in it is a line break.
        times: processor (default) for the frames' real times, published for the paper's run; see Chat.
    """

    own = QWEN_OWN
    fixed = QWEN
    most_frames: ClassVar[int | None] = MOST_FRAMES

    def __init__(
        self,
        pretrained: str,
        max_num_frames: int = 32,
        min_pixels: int = 256 * 28 * 28,
        max_pixels: int = 1605632,
        total_pixels: int | None = None,
        fps: float | None = None,
        system_prompt: str | None = "You are a helpful assistant.",
        reasoning_prompt: str | None = None,
        times: str = TIMES[0],
        **others: Any,
    ) -> None:
        check_fixed({k: v for k, v in others.items() if k not in self.own}, self.fixed, self.own)
        if not isinstance(max_num_frames, int) or max_num_frames < PAIR:
            raise ArgumentError(f"max_num_frames={max_num_frames!r}: frames are seen in pairs; sample at least {PAIR}")
        if fps is not None and not (isinstance(fps, int | float) and fps > 0):
            raise ArgumentError(f"fps={fps!r}: give frames a second above 0, or leave it out for max_num_frames")
        try:
            self.limits = PixelLimits(min_pixels, max_pixels, total_pixels)
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        if times not in TIMES:
            raise ArgumentError(f"times={times!r}: use one of {', '.join(TIMES)}")
        self.times = times
        most = self.most_frames or max_num_frames
        rate = RATE if fps is None and total_pixels is not None and self.most_frames is None else fps
        self.sampling = functools.partial(frame_indices, count=max_num_frames, rate=rate, most=most)
        self.system_prompt = system_prompt if system_prompt not in (None, "", "none", "None") else None
        self.reasoning_prompt = (reasoning_prompt or "").replace("\\n", "\n")
        self.asked = {
            "fps": fps,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "total_pixels": total_pixels,
            "system_prompt": self.system_prompt,
            "reasoning_prompt": reasoning_prompt,
            "times": times,
        }
        super().__init__(pretrained, max_num_frames, **others)

    def _generation(self, request: Instance) -> dict[str, Any]:
        """A blank line, lmms-eval's own default, does not end a reply, as upstream has it for these models."""
        settings = super()._generation(request)
        until = settings.get("until") or []
        settings["until"] = [end for end in ([until] if isinstance(until, str) else until) if end != "\n\n"]
        return settings

    def _text(self, request: Instance) -> str:
        """Without <image> marks: what is shown comes before the text."""
        return super()._text(request).replace("<image>", "")

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        messages = super()._messages(request)
        if self.reasoning_prompt:
            asked = [part for message in messages if message["role"] == "user" for part in message["content"]]
            texts = [part for part in asked if part["type"] == "text"]
            if texts:
                texts[-1]["text"] = texts[-1]["text"].strip() + self.reasoning_prompt
        if self.system_prompt is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, *messages]


class Qwen25VL(QwenVL):
    """Qwen2.5-VL."""

    model_classes = ("Qwen2_5_VLForConditionalGeneration",)

    def __init__(
        self, pretrained: str = "Qwen/Qwen2.5-VL-3B-Instruct", max_num_frames: int = 32, **others: Any
    ) -> None:
        super().__init__(pretrained, max_num_frames, **others)


class Qwen3VL(QwenVL):
    """Qwen3-VL, dense and mixture of experts."""

    model_classes = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
    most_frames = None  # max_num_frames

    def __init__(self, pretrained: str = "Qwen/Qwen3-VL-4B-Instruct", max_num_frames: int = 32, **others: Any) -> None:
        super().__init__(pretrained, max_num_frames, **others)


class Qwen35(QwenVL):
    """Qwen3.5, dense and mixture of experts. Upstream's defaults; whether it thinks is the chat template's choice.

    Args (as --model_args name=value,..), beside those of QwenVL: max_frames, upstream's other name of max_num_frames.
    """

    own = (*QWEN_OWN, "max_frames")
    fixed = QWEN_THINKING
    model_classes = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
    most_frames = None  # max_num_frames

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen3.5-4B",
        max_num_frames: int = 768,
        min_pixels: int = 64 * 32 * 32,
        max_pixels: int = 128 * 32 * 32,
        total_pixels: int | None = 224 * 1024 * 32 * 32,
        max_frames: int | None = None,
        **others: Any,
    ) -> None:
        frames = max_num_frames if max_frames is None else max_frames
        super().__init__(pretrained, frames, min_pixels, max_pixels, total_pixels, **others)


class Qwen3Omni(QwenVL):
    """Qwen3-Omni's thinker, which is shown videos without their sound. Upstream's system prompt."""

    model_classes = ("Qwen3OmniMoeThinkerForConditionalGeneration",)
    most_frames = None  # max_num_frames

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        max_num_frames: int = 128,
        system_prompt: str | None = OMNI,
        **others: Any,
    ) -> None:
        super().__init__(pretrained, max_num_frames, system_prompt=system_prompt, **others)


Qwen25VLChat = for_chat(Qwen25VL)
Qwen3VLChat = for_chat(Qwen3VL)
Qwen35Chat = for_chat(Qwen35)
Qwen3OmniChat = for_chat(Qwen3Omni)
