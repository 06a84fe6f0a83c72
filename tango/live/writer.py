"""The language model's side of a stream: what it has cached of the prompt, and greedy answers, token by token.

Questions share the start of the prompt, the text before the stream and the closed segments, and the cache keeps it from
one question to the next. What is new since then is prefilled with the question, and taken off again after the answer.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

from tango.inference.generation import check_logits
from tango.inference.prompt import check_length
from tango.live.answer import Answer
from tango.live.layout import Layout, Piece, joined
from tango.live.memory import Segment


class Writer:
    """Writes answers with a model's decoder; one at a time, under the lock on the model."""

    def __init__(self, model: Any, decoder: Any, layout: Layout, tokenizer: Any) -> None:
        self.model, self.decoder, self.layout, self.tokenizer = model, decoder, layout, tokenizer
        self.device = model.device
        self.width = int(model.config.get_text_config().hidden_size)
        names = inspect.signature(decoder.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"  # before transformers 5.2x
        self.forget()

    def forget(self) -> None:
        """Empty the cache."""
        self._cache: Any = DynamicCache()
        self._cached: list[tuple[Any, int, int]] = []  # of each cached piece: its key, its entries, the next position

    def write(
        self,
        answer: Answer,
        segments: Sequence[Segment],
        tail: Segment | None,
        grid: tuple[int, int],
        closed: Callable[[], bool],
    ) -> None:
        """Answer a question about closed segments and the open one, if any; `closed` says that it is to end early.

        Raises:
            ValueError: there is nothing to answer from, or the prompt is longer than the model has positions for.
        """
        layout = self.layout
        before, after = layout.prompt(answer.question, answer.turns())
        if tail is None and not segments:
            raise ValueError("no frame could be encoded yet: see the session's problems")
        last = float((tail or segments[-1]).times[-1, 0])
        layout.fit(last)

        # What the cache holds of the prompt's start, which questions share, stays.
        keys: list[Any] = [("text", tuple(before))]
        keys += [(s.number, s.joined, s.level, len(s.kept.frames), layout.scale) for s in segments]
        same = 0
        while same < min(len(keys), len(self._cached)) and self._cached[same][0] == keys[same]:
            same += 1
        reused = sum(count for _, count, _ in self._cached[:same])
        self._crop(reused)
        self._cached = self._cached[:same]
        at = self._cached[-1][2] if self._cached else 0
        pieces: list[Piece] = []
        for number in range(same, len(keys)):
            new = layout.segment(segments[number - 1], grid, at) if number else layout.text(before, 0)
            pieces.append(new)
            at = new.after
            self._cached.append((keys[number], len(new.embeds), at))
        lasting = sum(count for _, count, _ in self._cached)
        if tail is not None:
            pieces.append(layout.segment(tail, grid, at))
            at = pieces[-1].after
        pieces.append(layout.end(last, grid, at))
        pieces.append(layout.text(after, pieces[-1].after))
        prompt = joined(pieces, at)
        answer.reused, answer.prompt = reused, reused + len(prompt.embeds)
        check_length(prompt.after + answer.max_new_tokens, self.model)
        self._decode(answer, prompt, [*before, layout.video_token, *after], closed)
        self._crop(lasting)

    def _crop(self, length: int) -> None:
        if (over := int(self._cache.get_seq_length()) - length) > 0:
            self._cache.crop(-over)

    def _decode(self, answer: Answer, prompt: Piece, ids: list[int], closed: Callable[[], bool]) -> None:
        """Prefill what is new of a prompt and write the answer, token by token."""
        config = self.model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        penalty = config.repetition_penalty or 1.0
        penalise = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        seen = torch.tensor([ids], device=self.device)
        out: list[int] = []
        shown = ""
        piece = prompt
        while True:
            logits = self._forward(piece)
            if not out:
                check_logits(logits, self.model.dtype)
            if penalise is not None:
                logits = penalise(torch.cat((seen, seen.new_tensor([out])), 1) if out else seen, logits)
            token = int(logits.argmax(-1))
            if not out:
                answer.first()
            out.append(token)
            answer.new_tokens = len(out)
            text = self.tokenizer.decode(out, skip_special_tokens=True)
            if token in ends or len(out) >= answer.max_new_tokens or answer.cancelled or closed():
                answer.write(text[len(shown) :])
                return
            if not text.endswith("\ufffd"):  # part of a character
                answer.write(text[len(shown) :])
                shown = text
            piece = self.layout.text([token], piece.after)

    def _forward(self, piece: Piece) -> Tensor:
        """The logits (1, vocabulary) after a piece that goes on from the cache, which holds it then."""
        length = int(self._cache.get_seq_length()) + len(piece.embeds)
        call: dict[str, Any] = {
            "inputs_embeds": piece.embeds[None].to(self.model.dtype),
            "position_ids": piece.positions if len(piece.positions) == 1 else piece.positions[:, None],
            "attention_mask": torch.ones(1, length, dtype=torch.long, device=piece.embeds.device),
            "use_cache": True,
            self._cache_name: self._cache,
        }
        if piece.extra is not None:
            where = (piece.extra != 0).any(-1)
            call["visual_pos_masks"] = where[None]
            call["deepstack_visual_embeds"] = list(torch.split(piece.extra[where], self.width, dim=-1))
        hidden = self.decoder(**call).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[:, -1])
        return logits.float()
