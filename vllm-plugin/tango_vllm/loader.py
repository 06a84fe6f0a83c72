"""Fetching and reading videos: frames as everywhere else here, and what a client got wrong told to the client.

TangoLoader reads FFmpeg's own frames, with their true times. It is chosen with
--media-io-kwargs '{"video": {"num_frames": 8, "video_backend": "tango"}}', or for a request in its `media_io_kwargs`
where the server takes those (--trust-request-mm-kwargs).
vLLM's default reads the same frames of most files, by OpenCV, and computes times from the mean rate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from aiohttp import ClientError
from requests import RequestException
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from tango.inference.chat import metadata_of, resized
from tango.inference.video import read_video


@VIDEO_LOADER_REGISTRY.register("tango")
class TangoLoader(VideoLoader):
    """Reads evenly spread frames with tango.inference.video.read_video."""

    @classmethod
    def load_bytes(cls, data: bytes, num_frames: int = 32, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Frames (F, height, width, 3) and what is known of them.

        start, end: of the part of the video that is shown, in seconds. indices: of its frames, in place of num_frames
        evenly spread ones. size: height and width to show them in.

        Raises:
            ValueError: no video, one that no decoder knows, or one that is cut short; or frames that it does not have.
        """
        indices, size = kwargs.get("indices"), kwargs.get("size")
        if num_frames < 1 or kwargs.get("fps", -1) > 0:
            raise ValueError("video_backend=tango samples evenly: give num_frames of at least 1, and no fps")
        for name, numbers, least in (("indices", indices, 0), ("size", size, 1)):
            whole = isinstance(numbers, list) and numbers and all(type(one) is int and one >= least for one in numbers)
            if numbers is not None and not (whole and (name != "size" or len(numbers) == 2)):
                raise ValueError(f"{name}={numbers!r}: give a list of whole numbers of at least {least}, of a size two")

        def choose(total: int, seconds: float) -> list[int]:
            if max(indices) >= total:
                raise ValueError(f"indices reach frame {max(indices)} of a video that has {total}")
            return indices

        def resize(frames: int, frame: Any) -> Any:
            return frame if size is None else resized(frame, size)

        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(data)
            file.flush()
            try:
                wanted = num_frames if indices is None else choose
                clip = read_video(file.name, wanted, kwargs.get("start"), kwargs.get("end"), resize)
            except (ValueError, OSError) as error:
                raise ValueError(f"the video cannot be read: {str(error).replace(repr(file.name), 'it')}") from error
        more = {"video_backend": "tango", "do_sample_frames": False, "timestamps": list(clip.timestamps)}
        return clip.frames, metadata_of(clip) | more


@MEDIA_CONNECTOR_REGISTRY.register("tango")
class TangoConnector(MediaConnector):
    """vLLM's own, but a file that is not there or an address that does not answer is the request's fault, not a 500.

    The absolute path of a file, which VLMEvalKit's client sends, is taken for the file:// URL that it means.
    """

    def load_from_url(self, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load_from_url(_with_scheme(url), *args, **kwargs)
        except (OSError, ClientError, RequestException) as error:
            raise ValueError(_told(url, error)) from error

    async def load_from_url_async(self, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().load_from_url_async(_with_scheme(url), *args, **kwargs)
        except (OSError, ClientError, RequestException) as error:
            raise ValueError(_told(url, error)) from error


def _with_scheme(url: str) -> str:
    return Path(url).as_uri() if url.startswith("/") else url


def _told(url: str, error: Exception) -> str:
    reason = "it took too long" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
    return f"cannot fetch {url[:200]}: {reason or type(error).__name__}"
