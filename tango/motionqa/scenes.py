"""The videos of MotionQA: what one shows follows from a seed (`sample_spec`), and so does each frame (`render`).

Eight seconds of a textured static background with one or two scene cuts. Three coloured shapes cross it one after
another, white dots stand in one part of it, a letter flashes for little more than a second, and grey blocks, some
drifting, distract. `write_video` stores real H.264.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 128  # pixels, square frames
FPS = 8
DURATION = 8.0  # seconds
NUM_FRAMES = int(DURATION * FPS)
SLOT = 2.3  # seconds, the least time an object is in view: two of eight uniformly sampled frames at least
GLYPH_SECONDS = 1.25  # one of eight uniformly sampled frames at least

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (36, 176, 60),
    "blue": (44, 76, 232),
    "yellow": (238, 218, 48),
    "purple": (146, 48, 196),
    "orange": (246, 138, 26),
    "cyan": (48, 212, 222),
    "pink": (250, 136, 192),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NUMBERS = ("one", "two", "three", "four")
# 5 x 7 pixel letters, one row of bits a number; none is an option's letter.
GLYPHS: dict[str, tuple[int, ...]] = {
    "H": (17, 17, 17, 31, 17, 17, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "X": (17, 17, 10, 4, 10, 17, 17),
    "Z": (31, 1, 2, 4, 8, 16, 31),
}
GLYPH_SCALE = 3
GLYPH_WIDTH, GLYPH_HEIGHT = 5 * GLYPH_SCALE + 4, 7 * GLYPH_SCALE + 4  # a letter of 15 x 21 pixels on a dark plate

Array = NDArray[Any]


@dataclass(frozen=True)
class Actor:
    """A coloured shape that crosses the picture once; times in seconds, lengths in pixels."""

    colour: str
    shape: str
    direction: str
    start: float
    end: float
    x: float
    y: float
    distance: float
    radius: float

    @property
    def name(self) -> str:
        """Colour and shape, as questions name it."""
        return f"{self.colour} {self.shape}"

    def position(self, time: float) -> tuple[float, float]:
        """Centre (x, y) at a time; it moves evenly from `start` to `end`."""
        step = self.distance * (time - self.start) / (self.end - self.start)
        dx, dy = DIRECTIONS[self.direction]
        return self.x + dx * step, self.y + dy * step

    def box(self) -> tuple[float, float, float, float]:
        """Everything it sweeps: (left, top, right, bottom)."""
        (x0, y0), (x1, y1), r = self.position(self.start), self.position(self.end), self.radius + 1
        return min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r


@dataclass(frozen=True)
class Spec:
    """All that a video shows."""

    seed: int
    cuts: tuple[float, ...]  # seconds, where a new background starts
    actors: tuple[Actor, ...]  # in order of appearance
    dots: tuple[tuple[float, float], ...]  # centres
    dots_window: tuple[float, float]
    glyph: str
    glyph_at: tuple[int, int]  # left, top
    glyph_window: tuple[float, float]


def _apart(box: tuple[float, float, float, float], others: list[tuple[float, float, float, float]]) -> bool:
    return all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in others)


def sample_spec(seed: int) -> Spec:
    """Draws a video's contents from a seed; the same seed gives the same video everywhere."""
    rng = np.random.default_rng([20260409, seed])
    # Drawn once, so that trying again for room does not make crowded videos rarer and the count guessable.
    number = int(rng.integers(1, 5))
    while (spec := _try_spec(seed, number, rng)) is None:
        pass
    return spec


def _try_spec(seed: int, number: int, rng: np.random.Generator) -> Spec | None:
    """One draw of a video with `number` dots; None if they or the glyph found no room."""
    slack = np.diff(np.concatenate([[0.0], np.sort(rng.uniform(0, DURATION - 3 * SLOT, 3))]))
    starts = np.cumsum([0.0, SLOT + slack[0], SLOT + slack[1]])
    ends = [starts[1], starts[2], DURATION]
    colours = rng.permutation(list(COLOURS))[:3]
    shapes = rng.permutation(SHAPES)[:3]
    actors = []
    for i in range(3):
        direction = str(rng.choice(list(DIRECTIONS)))
        radius, distance = rng.uniform(11, 14), rng.uniform(48, 72)
        dx, dy = DIRECTIONS[direction]
        low, high = radius + 2, SIZE - radius - 2
        x = rng.uniform(low + distance * (dx < 0), high - distance * (dx > 0))
        y = rng.uniform(low + distance * (dy < 0), high - distance * (dy > 0))
        end = min(ends[i], starts[i] + SLOT + rng.uniform(0, 0.4)) if i < 2 else ends[i]
        actors.append(
            Actor(str(colours[i]), str(shapes[i]), direction, float(starts[i]), float(end), x, y, distance, radius)
        )
    cut_at = [bool(b) for b in rng.random(2) < 0.6]
    if not any(cut_at):
        cut_at[int(rng.integers(2))] = True
    cuts = tuple(float(s) for s, cut in zip(starts[1:], cut_at, strict=True) if cut)

    def free_place(width: int, height: int, window: tuple[float, float], taken: list[Any]) -> tuple[int, int] | None:
        blocked = taken + [a.box() for a in actors if a.start < window[1] and window[0] < a.end]
        for _ in range(200):
            x, y = int(rng.integers(3, SIZE - width - 3)), int(rng.integers(3, SIZE - height - 3))
            if _apart((x, y, x + width, y + height), blocked):
                return x, y
        return None

    glyph_start = float(rng.uniform(0, DURATION - GLYPH_SECONDS))
    glyph_window = (glyph_start, glyph_start + GLYPH_SECONDS)
    place = free_place(GLYPH_WIDTH, GLYPH_HEIGHT, glyph_window, [])
    host = actors[int(rng.integers(3))]
    window = (host.start, host.end)
    if place is None:
        return None
    taken = [(place[0] - 4, place[1] - 4, place[0] + GLYPH_WIDTH + 4, place[1] + GLYPH_HEIGHT + 4)]
    dots: list[tuple[float, float]] = []
    for _ in range(number):
        spot = free_place(10, 10, window, taken)
        if spot is None:
            return None
        dots.append((spot[0] + 5.0, spot[1] + 5.0))
        taken.append((spot[0] - 10, spot[1] - 10, spot[0] + 20, spot[1] + 20))
    glyph = str(rng.choice(list(GLYPHS)))
    return Spec(seed, cuts, tuple(actors), tuple(dots), window, glyph, place, glyph_window)


@lru_cache(maxsize=64)
def _background(seed: int, scene: int) -> Array:
    """A muted, textured still with grey blocks, (SIZE, SIZE, 3) float32."""
    rng = np.random.default_rng([7, seed, scene])
    picture = np.full((SIZE, SIZE, 3), rng.uniform(70, 140), np.float32)
    picture += rng.uniform(-14, 14, 3).astype(np.float32)
    for blocks, strength in ((4, 16.0), (16, 9.0), (64, 5.0)):
        noise = rng.normal(0, strength, (blocks, blocks, 1)).astype(np.float32)
        picture += noise.repeat(SIZE // blocks, 0).repeat(SIZE // blocks, 1)
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.integers(0, SIZE - 10, 2)
        w, h = rng.integers(6, 22, 2)
        picture[y : y + h, x : x + w] = rng.uniform(40, 190)
    return picture


def _coverage(shape: str, dx: Array, dy: Array, radius: float) -> Array:
    """How much of each pixel a shape covers, 0..1, from its signed distance (dx, dy are pixel centres from its own)."""
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(dx, dy) - 0.75 * radius) - 0.25 * radius
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - 0.85 * radius
    elif shape == "diamond":
        distance = (abs(dx) + abs(dy)) / np.sqrt(2) - 0.75 * radius
    elif shape == "triangle":
        distance = np.maximum(0.894 * abs(dx) - 0.447 * (dy + radius), dy - 0.8 * radius)
    else:  # cross
        a, b = np.maximum(abs(dx), abs(dy)), np.minimum(abs(dx), abs(dy))
        distance = np.maximum(a - radius, b - 0.32 * radius)
    return np.asarray(np.clip(0.5 - distance, 0, 1), np.float32)


def _paint(picture: Array, shape: str, x: float, y: float, radius: float, colour: Any) -> None:
    left, top = max(int(x - radius) - 2, 0), max(int(y - radius) - 2, 0)
    right, bottom = min(int(x + radius) + 3, SIZE), min(int(y + radius) + 3, SIZE)
    if left >= right or top >= bottom:
        return
    dx = np.arange(left, right, dtype=np.float32)[None] + 0.5 - x
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - y
    cover = _coverage(shape, dx, dy, radius)[..., None]
    region = picture[top:bottom, left:right]
    region += cover * (np.asarray(colour, np.float32) - region)


def render(spec: Spec, time: float) -> Array:
    """The frame at `time` seconds, (SIZE, SIZE, 3) uint8 RGB."""
    scene = sum(time >= cut for cut in spec.cuts)
    picture = _background(spec.seed, scene).copy()
    drift = np.random.default_rng([8, spec.seed, scene])
    bx, by, vx, vy, grey = drift.uniform([10, 10, -8, -8, 40], [SIZE - 10, SIZE - 10, 8, 8, 190])
    _paint(picture, "square", (bx + vx * time) % SIZE, (by + vy * time) % SIZE, 5, (grey, grey, grey))
    if spec.dots_window[0] <= time < spec.dots_window[1]:
        for x, y in spec.dots:
            _paint(picture, "circle", x, y, 5, (250, 250, 250))
    for actor in spec.actors:
        if actor.start <= time < actor.end:
            _paint(picture, actor.shape, *actor.position(time), actor.radius, COLOURS[actor.colour])
    if spec.glyph_window[0] <= time < spec.glyph_window[1]:
        x, y = spec.glyph_at
        bits = np.array([[row >> (4 - i) & 1 for i in range(5)] for row in GLYPHS[spec.glyph]], np.float32)
        plate = np.full((GLYPH_HEIGHT, GLYPH_WIDTH), 18, np.float32)
        plate[2:-2, 2:-2] += 232 * bits.repeat(GLYPH_SCALE, 0).repeat(GLYPH_SCALE, 1)
        picture[y : y + GLYPH_HEIGHT, x : x + GLYPH_WIDTH] = plate[..., None]
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


def uniform_times(frames: int) -> Array:
    """Times in seconds of `frames` uniformly sampled frames, first and last included, of a stored video."""
    return np.linspace(0, NUM_FRAMES - 1, frames).astype(int) / FPS


def write_video(path: Path, spec: Spec) -> None:
    """Stores a video as H.264 in an .mp4 file of NUM_FRAMES frames at FPS."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        # One thread and a fixed quality: the same seed gives the same bytes with the same library.
        stream.options = {"crf": "20", "preset": "medium", "threads": "1"}
        for i in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(render(spec, i / FPS), format="rgb24")))
        container.mux(stream.encode())
