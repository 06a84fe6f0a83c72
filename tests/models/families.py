"""Every model family as the tests see it: a small model, prompts with videos and images, and what pruning leaves.

One entry of FAMILIES is one family; the tests that hold for all of them take the fixture `family`. Everywhere a frame
has 3 x 3 tokens and a video 4 frames unless said otherwise.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tiny_internvl
import tiny_llava
import tiny_qwen
import tiny_video_llama_3
import torch
from tiny_llava import IMAGE, VIDEO, make_pruner, prompt
from torch import Tensor, nn

from tango.models.llava_video import LlavaVideoForConditionalGeneration
from tango.pruners import Pruned, Pruner

GRID, TOKENS = (3, 3), 9

__all__ = [
    "FAMILIES",
    "GRID",
    "IMAGE",
    "TOKENS",
    "VIDEO",
    "Spy",
    "TinyFamily",
    "count_frames",
    "make_pruner",
    "outputs",
]


class Spy(Pruner):
    """Keeps chosen tokens and notes what it was given."""

    name = "spy"
    wanted = frozenset({"key"})

    def __init__(self, indices=(0, 5, 17), wanted=frozenset({"key"}), **settings):
        super().__init__(**{"positions": "transformers"} | settings)
        self.indices, self.wanted, self.calls = torch.tensor(indices), wanted, []

    @property
    def needs(self):
        return self.wanted

    def prune_tokens(self, video):
        self.calls.append(vars(video))
        return Pruned(self.indices, video.features.flatten(0, 1)[self.indices], torch.tensor([len(video.features)]))

    def _prune(self, video):
        raise NotImplementedError


class TinyFamily(ABC):
    """One family. `image`: the ids of an image; `mrope`: tokens keep positions of their own; `units`: rows of the
    tower's input that make a frame; `inside`: methods may prune inside its decoder; `told`: seconds from frame to frame
    that its inputs always say; `keeps`: its forward() has logits_to_keep."""

    name: str
    image: list[int]
    mrope = False
    inside = True
    told: float | None = None
    keeps = True
    placeholder = VIDEO
    units = 1
    limit: str  # the constant that bounds the tower's input
    frames_per_call: float  # and what that means in frames

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._models: dict[Any, Any] = {}

    def model(self, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
        """A model by dtype and attention, made once; tests leave it as it was."""
        key = (dtype, attention)
        if key not in self._models:
            folder = Path(self._folder.name) / f"{dtype}-{attention}"
            folder.mkdir()
            self._models[key] = self.build(folder, dtype, attention)
        return self._models[key]

    def shared(self) -> Iterator[nn.Module]:
        """The modules of all models that were made."""
        return (part for model in self._models.values() for part in model.modules())

    @abstractmethod
    def build(self, folder: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0) -> Any:
        """A model of the caller's own."""

    @abstractmethod
    def video(self, frames: int = 4) -> list[int]:
        """Ids of a video: its placeholders and what stands around and between them."""

    def prompt(self, *rows: Sequence[int], side: str = "left") -> dict[str, Tensor]:
        """Rows of ids, padded to one length."""
        return prompt(*rows, side=side)

    @abstractmethod
    def pixels(
        self, videos: int = 1, frames: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """Keyword arguments for so many videos."""

    @abstractmethod
    def part(self, inputs: dict[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
        """Of keyword arguments with videos of 4 frames, those of some videos."""

    @abstractmethod
    def images(self, count: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Keyword arguments for so many images."""

    def visuals(self, order: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Keyword arguments for images and videos of 4 frames in an order of the prompt, as "ivv"."""
        return self.images(order.count("i"), dtype) | self.pixels(order.count("v"), dtype=dtype)

    def left(self, indices: Sequence[int], frames: int = 4) -> list[int]:
        """Offsets within video(frames) that stay when tokens of these flat indices are kept, in the prompt's order."""
        ids = self.video(frames)
        visual = [offset for offset, token in enumerate(ids) if token == self.placeholder]
        chosen = iter([visual[index] for index in indices])
        kept = {visual[index] for index in indices}
        return [
            offset if token != self.placeholder else next(chosen)
            for offset, token in enumerate(ids)
            if token != self.placeholder or offset in kept
        ]

    def columns(self, row: Sequence[int], indices: Sequence[int], frames: int = 4) -> list[int]:
        """Columns of a row of ids that stay when each of its videos keeps the tokens of these flat indices."""
        video, columns, column = self.video(frames), [], 0
        while column < len(row):
            if list(row[column : column + len(video)]) == video:
                columns += [column + offset for offset in self.left(indices, frames)]
                column += len(video)
            else:
                columns.append(column)
                column += 1
        return columns

    @abstractmethod
    def tower(self, model: Any) -> Any:
        """The module that takes the pixels of videos."""

    @abstractmethod
    def projector(self, model: Any) -> Any:
        """The last weight that makes the features."""


class Llava(TinyFamily):
    """LLaVA-OneVision: a newline after the video."""

    name = "llava_onevision"
    settings: ClassVar[dict[str, Any]] = {}
    size = 40
    limit = "tango.models.llava_onevision.FRAMES_PER_CALL"
    frames_per_call = 64
    image = [IMAGE] * (25 + 25 + 5)

    def build(self, folder, dtype=torch.float32, attention="sdpa", seed=0):
        return tiny_llava.build_model(folder, dtype, attention, seed, **self.settings)

    def video(self, frames=4):
        return [VIDEO] * (frames * TOKENS + 1)

    def pixels(self, videos=1, frames=4, seed=0, dtype=torch.float32):
        return {"pixel_values_videos": tiny_llava.pixels(videos, frames, seed, self.size, dtype)}

    def part(self, inputs, first, count):
        return {"pixel_values_videos": inputs["pixel_values_videos"][first : first + count]}

    def images(self, count=1, dtype=torch.float32):
        pixels = torch.randn(count, 2, 3, self.size, self.size, generator=torch.Generator().manual_seed(5))
        return {"pixel_values": pixels.to(dtype), "image_sizes": torch.tensor([[self.size] * 2] * count)}

    def left(self, indices, frames=4):
        return [*indices, frames * TOKENS]

    def tower(self, model):
        return model.model.vision_tower

    def projector(self, model):
        return model.model.multi_modal_projector.linear_2.weight


class LlavaVideo(Llava):
    """LLaVA-Video: a newline after each row of a frame that still has a token."""

    name = "llava_video"
    settings: ClassVar = {"model_class": LlavaVideoForConditionalGeneration, "image_size": 56}
    size = 56
    image = [IMAGE] * (49 + 49 + 7)

    def video(self, frames=4):
        return [VIDEO] * (frames * 12)

    def left(self, indices, frames=4):
        rows = sorted({index // 3 for index in indices})
        return sorted([index // 3 * 4 + index % 3 for index in indices] + [row * 4 + 3 for row in rows])


class Qwen(TinyFamily):
    """Qwen2.5-VL: one span of placeholders between a start and an end."""

    name = "qwen2_5_vl"
    image = [tiny_qwen.START] + [IMAGE] * 4 + [tiny_qwen.END]
    mrope = True
    units = 36
    limit = "tango.models.packed.PATCHES_PER_CALL"
    frames_per_call = 32768 / 36

    def build(self, folder, dtype=torch.float32, attention="sdpa", seed=0):
        return tiny_qwen.build_model(folder, dtype, attention, seed, self.name)

    def video(self, frames=4):
        return [tiny_qwen.START, *[VIDEO] * (frames * TOKENS), tiny_qwen.END]

    def prompt(self, *rows, side="left"):
        inputs = super().prompt(*rows, side=side)
        ids = inputs["input_ids"]
        return inputs | {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}

    def pixels(self, videos=1, frames=4, seed=0, dtype=torch.float32):
        return tiny_qwen.video_inputs(*[(frames, 6, 6)] * videos, seed=seed, dtype=dtype)

    def part(self, inputs, first, count):
        return {
            "pixel_values_videos": inputs["pixel_values_videos"][144 * first : 144 * (first + count)],
            "video_grid_thw": inputs["video_grid_thw"][first : first + count],
        }

    def images(self, count=1, dtype=torch.float32):
        return tiny_qwen.image_inputs(*[(4, 4)] * count, dtype=dtype)

    def tower(self, model):
        return model.model.visual

    def projector(self, model):
        return model.model.visual.merger.mlp[2].weight


class Qwen3(Qwen):
    """Qwen3-VL: each frame by itself, after its time as text."""

    name = "qwen3_vl"

    def video(self, frames=4):
        span = [tiny_qwen.START, *[VIDEO] * TOKENS, tiny_qwen.END]
        return [token for frame in range(frames) for token in (20 + frame % 50, *span)]

    def projector(self, model):
        return model.model.visual.merger.linear_fc2.weight


class Qwen3Moe(Qwen3):
    name = "qwen3_vl_moe"


class Qwen35(Qwen3):
    """Qwen3.5: as Qwen3-VL, but without deepstack, and every second layer of the decoder a linear attention."""

    name = "qwen3_5"
    inside = False


class Qwen35Moe(Qwen35):
    name = "qwen3_5_moe"


class Qwen3Omni(Qwen):
    """Qwen3-Omni's thinker: one span of placeholders, frames 0.5 s apart, so that positions are fractions."""

    name = "qwen3_omni_moe"
    told = 0.5
    keeps = False

    def prompt(self, *rows, side="left"):
        return prompt(*rows, side=side)

    def pixels(self, videos=1, frames=4, seed=0, dtype=torch.float32):
        return super().pixels(videos, frames, seed, dtype) | {
            "video_second_per_grid": torch.tensor([self.told] * videos)
        }

    def part(self, inputs, first, count):
        intervals = inputs["video_second_per_grid"][first : first + count]
        return super().part(inputs, first, count) | {"video_second_per_grid": intervals}

    def tower(self, model):
        return tiny_qwen.vision_tower(model)

    def projector(self, model):
        return self.tower(model).merger.mlp[2].weight


class InternVL(TinyFamily):
    """InternVL: each frame a tile by itself, after its number; images of two tiles. One token is the place of both."""

    name = "internvl"
    image = [tiny_qwen.START] + [IMAGE] * (2 * TOKENS) + [tiny_qwen.END]
    placeholder = IMAGE
    limit = "tango.models.internvl.TILES_PER_CALL"
    frames_per_call = 64

    def build(self, folder, dtype=torch.float32, attention="sdpa", seed=0):
        return tiny_internvl.build_model(folder, dtype, attention, seed)

    def video(self, frames=4):
        span = [tiny_qwen.START, *[IMAGE] * TOKENS, tiny_qwen.END]
        return [token for frame in range(frames) for token in (20 + frame % 50, *span)]

    def pixels(self, videos=1, frames=4, seed=0, dtype=torch.float32):
        pixels = tiny_llava.pixels(videos, frames, seed, tiny_internvl.SIZE, dtype)
        return {"pixel_values": pixels.flatten(0, 1), "video_frames": [frames] * videos}

    def part(self, inputs, first, count):
        tiles = slice(4 * first, 4 * (first + count))
        return {"pixel_values": inputs["pixel_values"][tiles], "video_frames": inputs["video_frames"][:count]}

    def images(self, count=1, dtype=torch.float32):
        generator = torch.Generator().manual_seed(5)
        size = tiny_internvl.SIZE
        return {"pixel_values": torch.randn(2 * count, 3, size, size, generator=generator).to(dtype)}

    def visuals(self, order, dtype=torch.float32):
        images, videos = self.images(order.count("i"), dtype), self.pixels(order.count("v"), dtype=dtype)
        tiles = {"i": iter(images["pixel_values"].split(2)), "v": iter(videos["pixel_values"].split(4))}
        frames = [4 if visual == "v" else 0 for visual in order]
        return {"pixel_values": torch.cat([next(tiles[visual]) for visual in order]), "video_frames": frames}

    def tower(self, model):
        return model.model.vision_tower

    def projector(self, model):
        return model.model.multi_modal_projector.linear_2.weight


class VideoLlama3(TinyFamily):
    """VideoLLaMA3: each frame after its time; nothing is left out by the processor but where a test says so."""

    name = "video_llama_3"
    keeps = False
    image = [IMAGE] * 4
    units = 36
    limit = "tango.models.packed.PATCHES_PER_CALL"
    frames_per_call = 32768 / 36

    def build(self, folder, dtype=torch.float32, attention="sdpa", seed=0):
        return tiny_video_llama_3.build_model(folder, dtype, attention, seed)

    def video(self, frames=4):
        return [token for frame in range(frames) for token in (20 + frame % 50, *[VIDEO] * TOKENS)]

    def pixels(self, videos=1, frames=4, seed=0, dtype=torch.float32):
        return tiny_video_llama_3.video_inputs(*[(frames, 6, 6)] * videos, seed=seed, dtype=dtype)

    def part(self, inputs, first, count):
        return {
            "pixel_values_videos": inputs["pixel_values_videos"][144 * first : 144 * (first + count)],
            "video_grid_thw": inputs["video_grid_thw"][first : first + count],
            "video_merge_sizes": inputs["video_merge_sizes"][first : first + count],
        }

    def images(self, count=1, dtype=torch.float32):
        return tiny_video_llama_3.image_inputs(*[(4, 4)] * count, dtype=dtype)

    def tower(self, model):
        return model.model.vision_model

    def projector(self, model):
        return model.model.projector.readout[2].weight


def count_frames(family: TinyFamily, model: Any, frames: list[float]) -> Any:
    """A hook of the tower that notes how many frames it is called with."""

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        frames.append(len(pixels) / family.units)

    return family.tower(model).register_forward_pre_hook(note, with_kwargs=True)


FAMILIES = {
    family.name: family
    for family in (Llava(), LlavaVideo(), Qwen(), Qwen3(), Qwen35(), InternVL(), VideoLlama3(), Qwen3Omni())
}


def outputs(model: Any, inputs: dict[str, Tensor], new: int = 6) -> tuple[Tensor, Tensor]:
    """Greedy answer and prefill logits."""
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=new, do_sample=False), model(**inputs).logits
