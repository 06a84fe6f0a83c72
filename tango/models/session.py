"""What the caller of attach() learns of each call: how many tokens of each video were left, and which."""

import threading
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VideoRecord:
    """What became of one video. Token counts are visual tokens; newline embeddings are not counted.

    `indices` (tokens_after,) are flat indices f*H*W + h*W + w on the CPU, in the order the method
    gives them, in which the language model sees them unless its family lays tokens out in rows (LLaVA-Video).
    tokens_in_llm: those that its last layers still see, where they are pruned inside it too, and average_retention:
    the share of tokens_before that its layers see at prefill, in the mean over all of them.
    """

    tokens_before: int
    tokens_after: int
    grid: tuple[int, int]
    frames: int
    segment_sizes: list[int]
    indices: Tensor
    tokens_in_llm: int
    average_retention: float


class Session:
    """What the caller of attach() gets: `videos`, one record per video of the last call, in prompt order.

    A thread that has called the model reads the records of its own last call, any other thread those of the latest.
    """

    def __init__(self) -> None:
        self._latest: list[VideoRecord] = []
        self._own = threading.local()

    @property
    def videos(self) -> list[VideoRecord]:
        records: list[VideoRecord] = getattr(self._own, "videos", self._latest)
        return records

    @videos.setter
    def videos(self, records: list[VideoRecord]) -> None:
        self._own.videos = self._latest = records
