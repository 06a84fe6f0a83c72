"""One frame with its tokens, for the contact sheet: under its saliency, and with what became of each token."""

import numpy as np
from PIL import Image, ImageDraw

from tango.pruners.trace import CONTEXT, GONE, KEPT, SALIENT
from tango.visualize.picture import (
    KEPT_COLOUR,
    SALIENT_COLOUR,
    Array,
    Colour,
    Panel,
    Picture,
    group_colour,
    heat_colours,
)

Box = tuple[int, int, int, int]  # left, upper, right and lower pixels, the last ones included

WIDTH = 1880  # pixels that a row of frames aims at
LARGEST, SMALLEST_CELL = 240, 6  # pixels along a frame at most, and along a token at least
GAP = 10  # pixels between frames
DIM, MEMBER = 0.25, 0.6  # brightness of a dropped token, and of one that was merged into another
HEAT_OPACITY = 0.55


class Tiles:
    """A picture's frames at the size they are drawn in, and how many stand in a row (`columns`)."""

    def __init__(self, picture: Picture) -> None:
        count, height, width, _ = picture.frames.shape
        rows, columns = picture.grid
        self.columns = count if count <= 8 else max(8, min(count, round((1.5 * count) ** 0.5)))
        scale = min(LARGEST, WIDTH / self.columns - GAP) / max(width, height)
        self.cell = (
            max(SMALLEST_CELL, round(width * scale / columns)),
            max(SMALLEST_CELL, round(height * scale / rows)),
        )
        self.grid = picture.grid
        self.size = (self.cell[0] * columns, self.cell[1] * rows)
        self.images = [Image.fromarray(frame).resize(self.size, Image.Resampling.LANCZOS) for frame in picture.frames]

    def box(self, row: int, column: int) -> Box:
        """Where a token stands in its frame."""
        width, height = self.cell
        return column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1

    def of_frame(self, values: Array, frame: int) -> Array:
        """The values (H, W) of one frame out of those of all tokens."""
        size = self.grid[0] * self.grid[1]
        return np.asarray(values[frame * size : (frame + 1) * size]).reshape(self.grid)

    def heat(self, panel: Panel, frame: int) -> Image.Image:
        """A frame with its saliency laid over it as colours; the plain frame where the method uses no saliency."""
        image = self.images[frame]
        if panel.heat is None:
            return image
        colours = heat_colours(self.of_frame(panel.heat, frame))
        return Image.blend(image, Image.fromarray(colours).resize(image.size, Image.Resampling.NEAREST), HEAT_OPACITY)

    def fates(self, panel: Panel, frame: int, numbers: dict[int, int]) -> Image.Image:
        """A frame with its tokens drawn as kept, merged or dropped.

        A token that was merged into several kept ones is outlined as part of the nearest.

        Args:
            numbers: groups(panel.joined), the number of each kept token that stands for several.
        """
        roles, static = self.of_frame(panel.roles, frame), self.of_frame(panel.static, frame)
        joined = self.of_frame(panel.joined[:, 0], frame)
        bright = np.where(roles != GONE, 1.0, np.where(joined >= 0, MEMBER, DIM))
        bright = bright.repeat(self.cell[1], 0).repeat(self.cell[0], 1)[..., None]
        tile = Image.fromarray((np.asarray(self.images[frame]) * bright).astype(np.uint8))
        draw = ImageDraw.Draw(tile)
        at = [(row, column) for row in range(self.grid[0]) for column in range(self.grid[1])]
        for row, column in at:
            if static[row, column]:
                hatch(draw, self.box(row, column))
        for row, column in at:
            if (number := numbers.get(int(joined[row, column]))) is not None:
                _outline(draw, joined, row, column, self.box(row, column), group_colour(number))
        for row, column in at:
            own = frame * roles.size + row * self.grid[1] + column
            mark(draw, self.box(row, column), int(roles[row, column]), numbers.get(own))
        return tile


def hatch(draw: ImageDraw.ImageDraw, box: Box) -> None:
    """A diagonal through a static place."""
    left, upper, right, lower = box
    draw.line((left, lower, right, upper), (200, 200, 205))


def mark(draw: ImageDraw.ImageDraw, box: Box, role: int, number: int | None) -> None:
    """A kept token: a white or yellow frame, or a filled spot; number: of its group, None if it stands for itself."""
    left, upper, right, lower = box
    colour = (0, 0, 0) if number is None else group_colour(number)
    if role in (KEPT, SALIENT):
        draw.rectangle(box, outline=colour)
        inner = (left + 1, upper + 1, right - 1, lower - 1)
        draw.rectangle(inner, outline=SALIENT_COLOUR if role == SALIENT else KEPT_COLOUR, width=_stroke(box))
    elif role == CONTEXT:
        colour = (190, 190, 196) if number is None else colour
        inset = max(1, (right - left) // 5), max(1, (lower - upper) // 5)
        draw.rectangle(box, outline=colour, width=_stroke(box))
        draw.ellipse((left + inset[0], upper + inset[1], right - inset[0], lower - inset[1]), colour, (0, 0, 0))


def _outline(draw: ImageDraw.ImageDraw, joined: Array, row: int, column: int, box: Box, colour: Colour) -> None:
    """The edges of a token where its neighbour belongs to another group; joined: (H, W), of this frame."""
    left, upper, right, lower = box
    edges = {(0, -1): (left, upper, left, lower), (0, 1): (right, upper, right, lower),
             (-1, 0): (left, upper, right, upper), (1, 0): (left, lower, right, lower)}  # fmt: skip
    for (down, across), line in edges.items():
        r, c = row + down, column + across
        if not (0 <= r < joined.shape[0] and 0 <= c < joined.shape[1]) or joined[r, c] != joined[row, column]:
            draw.line(line, colour, _stroke(box))


def _stroke(box: Box) -> int:
    return 1 if min(box[2] - box[0], box[3] - box[1]) < 12 else 2
