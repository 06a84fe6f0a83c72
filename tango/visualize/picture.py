"""What a contact sheet and a page show: a video's frames, and for each method and ratio the fate of every token.

Plain arrays, so that what draws them needs no model.
"""

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Colour = tuple[int, int, int]

HEAT: tuple[Colour, ...] = ((13, 8, 60), (126, 3, 168), (203, 71, 119), (248, 149, 64), (240, 249, 33))
SALIENT_COLOUR: Colour = (255, 255, 255)
KEPT_COLOUR: Colour = (255, 214, 64)
HUE_STEP = 137.508  # degrees, the golden angle: neighbours in order are far apart in colour


@dataclass(frozen=True)
class Panel:
    """One method at one ratio on a video of F frames of L tokens; flat indices are frame * L + place.

    method: the name to show, which is its own for each set of settings.
    roles (F * L,) uint8, joined (F * L, c) int64, static (F * L,) bool: see tango.pruners.trace.Trace.
    heat (F * L,) uint8: the saliency that the method used, see heat_of(); None where it uses none.
    segments: frames in each segment.
    before, after, in_llm: the video's tokens, those that enter the language model, and those its last layers see.
    answer: to the picture's question, if it has one.
    """

    method: str
    ratio: float
    roles: Array
    joined: Array
    static: Array
    heat: Array | None
    segments: tuple[int, ...]
    before: int
    after: int
    in_llm: int
    answer: str | None = None

    @property
    def count(self) -> str:
        """How many tokens were kept, as text."""
        text = f"{self.after} of {self.before} tokens kept ({self.after / self.before:.1%})"
        return text if self.in_llm == self.after else f"{text}, {self.in_llm} in the last layers"


@dataclass(frozen=True)
class Picture:
    """Everything that a contact sheet or page shows.

    video, model, command, question: text to show; unpruned: the answer of the model as it is.
    frames (F, height, width, 3) uint8, as far as tokens stand for them; times (F,) seconds, grid (H, W) with L = H * W.
    panels: for each method, one panel for each of the ratios.
    """

    video: str
    model: str
    frames: Array
    times: tuple[float, ...]
    grid: tuple[int, int]
    ratios: tuple[float, ...]
    panels: tuple[tuple[Panel, ...], ...]
    command: str | None = None
    question: str | None = None
    unpruned: str | None = None


def heat_of(saliency: Array) -> Array:
    """Saliency (n,) as heat (n,) uint8, 0 to 255; all 0 where all values are equal.

    255 stands for the least of the largest hundredth and for all above it, so that a few attention sinks don't make
    everything else dark.
    """
    low, high = float(saliency.min()), float(np.quantile(saliency, 0.99, method="lower"))
    if high <= low:
        high = float(saliency.max())
    span = high - low
    scaled = (saliency - low) / span if span > 0 else np.zeros_like(saliency)
    return np.asarray(np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)


def heat_colours(heat: Array) -> Array:
    """Heat (..) of 0 to 255 as colours (.., 3) uint8."""
    at = heat.astype(float) / 255 * (len(HEAT) - 1)
    stops = np.arange(len(HEAT))
    channels = [np.interp(at, stops, [colour[c] for colour in HEAT]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def groups(joined: Array) -> dict[int, int]:
    """Kept tokens that stand for several tokens, each with its number in order of place, which gives its colour.

    joined: (F * L, c), see Panel.
    """
    kept, sizes = np.unique(joined[joined >= 0], return_counts=True)
    return {int(index): number for number, index in enumerate(kept[sizes > 1])}


def group_colour(number: int) -> Colour:
    """The colour of a group by its number, as CSS has hsl(number * HUE_STEP, 85%, 60%)."""
    red, green, blue = colorsys.hls_to_rgb(number * HUE_STEP % 360 / 360, 0.6, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)
