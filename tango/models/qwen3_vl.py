"""Qwen3-VL (arXiv 2511.21631): a vision tower with deepstack, a 2 x 2 merger, a decoder with interleaved M-RoPE.

A video stands in the prompt as one span of L placeholders for each frame, and before each the frame's time as text:
that text stays, also where all tokens of a frame are dropped. Kept tokens take the places of their placeholders and
keep their positions. The tower also hands over features of some of its earlier layers (deepstack, arXiv 2406.04334),
which the decoder adds to the tokens after its own first layers. Every kept token comes with the deepstack features of
its place; a merged token with those of the place where it stands, its anchor's, unmerged.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.models.prompt import Prompt
from tango.models.qwen_vl import QwenVL
from tango.models.versions import deepstack
from tango.pruners.base import Pruner


class Qwen3VL(QwenVL):
    """Qwen3VLForConditionalGeneration and its mixture-of-experts sister, Qwen3VLMoeForConditionalGeneration."""

    title = "Qwen3-VL"

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.extra_width = self.width * len(self.tower.deepstack_visual_indexes)
        self._waiting: Tensor | None = None  # deepstack features (B, W, X) of the prompt that comes next

    def _tokens(self, output: Any) -> Tensor:
        return torch.cat((super()._tokens(output), *deepstack(output)), dim=-1)

    def begin(self, prompt: Prompt | None) -> None:
        self._waiting = None if prompt is None else prompt.extra

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        hook = self.core.get_decoder().register_forward_pre_hook(self._hand_over, with_kwargs=True)
        with hook, super().installed():
            yield

    def _hand_over(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Pre-hook of the decoder: deepstack features for its first call on a pruned prompt.

        The model passes none itself when the prompt comes as embeddings. Here the rows may have been repeated, for
        beams or samples, and tokens generated so far may follow the prompt, where there is no cache.
        """
        extra, self._waiting = self._waiting, None
        if extra is None or not extra.shape[-1]:  # a tower may hand over none
            return None
        batch, width = kwargs["inputs_embeds"].shape[:2]
        extra = extra.repeat_interleave(batch // len(extra), dim=0)
        where = (extra != 0).any(-1)  # text has zeros, which would add nothing
        features = torch.split(extra[where], self.width, dim=-1)
        where = F.pad(where, (0, width - where.shape[1]))
        return args, {**kwargs, "visual_pos_masks": where, "deepstack_visual_embeds": list(features)}


FAMILY = Qwen3VL
