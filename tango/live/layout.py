"""What the language model receives of a stream: the prompt around it, and held segments as embeddings and positions.

One class a family. What is written of a segment depends on it and on what stands before it alone, so that a cache of
the earlier part of a prompt stays right when more is appended. Where nothing was thinned, the prompt is the one that
generate() makes of the same clip under the same method.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tango.inference.prompt import spell_out, written
from tango.live.memory import Segment
from tango.models.tower import weight


@dataclass(frozen=True)
class Piece:
    """A stretch of the prompt: embeddings (n, D), positions (P, n), and extra (n, X), 0 in text, or None.

    after: the position that the next piece starts from.
    """

    embeds: Tensor
    positions: Tensor
    extra: Tensor | None
    after: int


class Layout:
    """LLaVA-OneVision's: kept tokens one after another, a newline after the last, positions without gaps.

    Base of the others. axes: positions of a token. samples: sampled frames that make a frame of the tower. scale: what
    positions depend on besides the segments; a cache was made with the same.
    """

    axes = 1
    samples = 1
    scale = 1.0

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.embedding = model.get_input_embeddings()
        self.video_token = int(model.config.video_token_id)
        self.device = self.embedding.weight.device
        self.most_positions = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)

    def prompt(self, question: str, turns: Sequence[tuple[str, str]] = ()) -> tuple[list[int], list[int]]:
        """The tokens before the stream and those after it, by the chat template; raises ValueError for no text.

        turns: questions and answers before this one.
        """
        texts = [text for turn in turns for text in turn] + [question]
        messages: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
            for number, text in enumerate(texts)
        ]
        messages[0]["content"].insert(0, {"type": "video"})
        text, spelled = written(messages, self.processor)
        batch = {"input_ids": torch.tensor([self.processor.tokenizer(text)["input_ids"]])}
        spell_out(batch, spelled)
        ids = batch["input_ids"][0].tolist()
        at = ids.index(self.video_token)
        return ids[:at], ids[at + 1 :]

    def text(self, ids: Sequence[int], at: int) -> Piece:
        """Text from a position on."""
        embeds = self.embedding(torch.tensor(ids, dtype=torch.long, device=self.device))
        positions = torch.arange(at, at + len(ids), device=self.device).expand(self.axes, -1)
        return Piece(embeds, positions, None, at + len(ids))

    def cost(self, segment: Segment) -> int:
        """Entries of the language model that a segment takes."""
        return len(segment.kept.frames)

    def segment(self, segment: Segment, grid: tuple[int, int], at: int) -> Piece:
        """A held segment."""
        count = len(segment.kept.frames)
        positions = torch.arange(at, at + count, device=self.device)[None]
        return Piece(segment.kept.features.to(self.device), positions, None, at + count)

    def end(self, last: float, grid: tuple[int, int], at: int) -> Piece:
        """What follows the last segment, whose last frame began at `last` seconds."""
        newline = weight(self.model.model, "image_newline")[None].to(self.device)
        return Piece(newline, torch.tensor([[at]], device=self.device), None, at + 1)

    def fit(self, last: float) -> None:
        """Make room for positions up to a frame that begins at `last` seconds, where they are times."""


class Qwen25(Layout):
    """Qwen2.5-VL: temporal positions are real seconds, rows and columns those of the grid.

    The model was trained on at most some hours; a longer stream's clock runs at half the speed for it, then at a
    quarter, .., so that temporal positions stay below half of what it has positions for, and below 16,384.
    """

    axes = 3

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision = model.config.vision_config
        self.samples = int(vision.temporal_patch_size)
        self.rate = float(getattr(vision, "tokens_per_second", 0))
        self.most = min(self.most_positions, 32768) // 2

    def fit(self, last: float) -> None:
        while last * self.rate * self.scale > self.most:
            self.scale /= 2

    def ticks(self, seconds: Tensor) -> Tensor:
        """Temporal positions of times; a thousandth more, for times that are all but a tick."""
        return (seconds * (self.rate * self.scale) + 1e-3).floor().long()

    def segment(self, segment: Segment, grid: tuple[int, int], at: int) -> Piece:
        kept = segment.kept
        times = self.ticks(segment.times[:, 0].to(self.device)[kept.frames.to(self.device)])
        places = kept.places.to(self.device)
        positions = at + torch.stack((times, places // grid[1], places % grid[1]))
        return Piece(kept.features.to(self.device), positions, None, at)

    def end(self, last: float, grid: tuple[int, int], at: int) -> Piece:
        after = at + max(int(self.ticks(torch.tensor(last, dtype=torch.float64))), grid[0] - 1, grid[1] - 1) + 1
        return Piece(self.text([], 0).embeds, torch.empty(3, 0, dtype=torch.long, device=self.device), None, after)


class Qwen3(Layout):
    """Qwen3-VL: before each frame its time as text, which goes with the frame's last token once a segment is thinned.

    So positions, which count text and frames, are bounded by what is held, however long the stream.
    """

    axes = 3

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.samples = int(model.config.vision_config.temporal_patch_size)
        self._known = functools.lru_cache(1 << 14)(self._tokens)  # asked for with every frame
        # Around each frame, besides those that the template has around the whole, as the processor writes it.
        self.begins, self.ends = [processor.vision_start_token_id], [processor.vision_end_token_id]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _time(self, seconds: float) -> list[int]:
        return self._known(f"<{seconds:.1f} seconds>")

    def cost(self, segment: Segment) -> int:
        texts = (len(self._time(time)) + 2 for time in segment.times[segment.shown, 1].tolist())
        return len(segment.kept.frames) + sum(texts)

    def segment(self, segment: Segment, grid: tuple[int, int], at: int) -> Piece:
        kept, pieces = segment.kept, []
        of_frame, places = kept.frames.to(self.device), kept.places.to(self.device)
        for frame in segment.shown.tolist():
            pieces.append(self.text([*self._time(float(segment.times[frame, 1])), *self.begins], at))
            at, own = pieces[-1].after, (of_frame == frame).nonzero()[:, 0]
            rows, columns = places[own] // grid[1], places[own] % grid[1]
            positions = at + torch.stack((torch.zeros_like(rows), rows, columns))
            extra = None if kept.extra is None else kept.extra.to(self.device)[own]
            pieces.append(Piece(kept.features.to(self.device)[own], positions, extra, at + max(grid)))
            pieces.append(self.text(self.ends, pieces[-1].after))
            at = pieces[-1].after
        return joined(pieces, at)

    def end(self, last: float, grid: tuple[int, int], at: int) -> Piece:
        return self.text([], at)


def joined(pieces: Sequence[Piece], at: int) -> Piece:
    """Pieces one after another, none of them at position `at`."""
    width = max((piece.extra.shape[1] for piece in pieces if piece.extra is not None), default=0)
    extra = [
        piece.embeds.new_zeros(len(piece.embeds), width) if piece.extra is None else piece.extra.to(piece.embeds)
        for piece in pieces
    ]
    dtype = pieces[0].embeds.dtype
    return Piece(
        torch.cat([piece.embeds.to(dtype) for piece in pieces]),
        torch.cat([piece.positions for piece in pieces], 1),
        torch.cat(extra) if width else None,
        pieces[-1].after if pieces else at,
    )


LAYOUTS: dict[str, type[Layout]] = {"LLaVA-OneVision": Layout, "Qwen2.5-VL": Qwen25, "Qwen3-VL": Qwen3}


def layout_of(family: Any, model: Any, processor: Any) -> Layout:
    """The layout of a model's family; ValueError for one that has none."""
    if family.title not in LAYOUTS:
        raise ValueError(f"no live video with {family.title}: use one of {', '.join(LAYOUTS)}")
    if family.title == "LLaVA-OneVision" and family.keep_positions:
        raise ValueError(
            "keep_positions=True: positions of a stream would grow for ever in a family that numbers tokens; use "
            "keep_positions=False"
        )
    if family.title == "Qwen2.5-VL" and not family.trained:
        raise ValueError("positions='transformers': a stream has Qwen2.5-VL's own, real seconds; leave 'trained'")
    return LAYOUTS[family.title](model, processor)
