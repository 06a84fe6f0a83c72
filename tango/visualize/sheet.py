"""One method at one ratio as a contact sheet (PNG): every frame with its saliency, and below it what became of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tango.pruners.trace import CONTEXT, GONE, KEPT, SALIENT
from tango.visualize.picture import (
    KEPT_COLOUR,
    SALIENT_COLOUR,
    Array,
    Colour,
    Panel,
    Picture,
    group_colour,
    groups,
    heat_colours,
)

BACKGROUND, INK, FAINT = (255, 255, 255), (24, 24, 28), (110, 110, 118)
SEGMENTS: tuple[Colour, Colour] = ((59, 108, 178), (142, 176, 222))  # bars of segments, in turn
WIDTH, LEAST_WIDTH = 1920, 760  # pixels that a sheet aims at, and has at least
LARGEST, SMALLEST_CELL = 240, 6  # pixels along a frame at most, and along a token at least
GAP, BAR, MARGIN = 10, 8, 20
DIM, MEMBER = 0.25, 0.6  # brightness of a dropped token and of one that was merged into another
HEAT_SHARE = 0.55


class Tiles:
    """Where the frames of a sheet stand: `columns` a row, each with a bar and a line of text above two pictures."""

    def __init__(self, picture: Picture) -> None:
        count, height, width, _ = picture.frames.shape
        rows, columns = picture.grid
        self.columns = count if count <= 8 else max(8, min(count, round((1.5 * count) ** 0.5)))
        scale = min(LARGEST, (WIDTH - 2 * MARGIN) / self.columns - GAP) / max(width, height)
        self.cell = (
            max(SMALLEST_CELL, round(width * scale / columns)),
            max(SMALLEST_CELL, round(height * scale / rows)),
        )
        self.grid = picture.grid
        self.size = (self.cell[0] * columns, self.cell[1] * rows)
        self.text = BAR + 20
        self.step = (self.size[0] + GAP, 2 * self.size[1] + self.text + GAP)
        self.rows = -(-count // self.columns)

    def corner(self, frame: int) -> tuple[int, int]:
        """Left and upper edge of a frame's bar, from the left upper corner of all tiles."""
        row, column = divmod(frame, self.columns)
        return column * self.step[0], row * self.step[1]


def draw_sheet(picture: Picture, panel: Panel, path: Path) -> None:
    """Write the contact sheet of one panel of a picture."""
    tiles = Tiles(picture)
    width = max(LEAST_WIDTH, tiles.columns * tiles.step[0] - GAP + 2 * MARGIN)
    head = _head(picture, panel, width - 2 * MARGIN)
    legend = _legend(panel, width - 2 * MARGIN)
    top = MARGIN + head.height + GAP + legend.height + GAP
    sheet = Image.new("RGB", (width, top + tiles.rows * tiles.step[1] + MARGIN), BACKGROUND)
    sheet.paste(head, (MARGIN, MARGIN))
    sheet.paste(legend, (MARGIN, MARGIN + head.height + GAP))
    draw = ImageDraw.Draw(sheet)
    segment_of = np.repeat(np.arange(len(panel.segments)), panel.segments)
    numbers = {} if panel.joined is None else groups(panel.joined)
    for frame, pixels in enumerate(picture.frames):
        left, upper = tiles.corner(frame)
        left, upper = left + MARGIN, upper + top
        segment = int(segment_of[frame])
        last = frame + 1 == len(segment_of) or segment_of[frame + 1] != segment
        # The bar runs on to the next frame of the same segment, so that gaps in it are the borders of segments.
        end = left + tiles.size[0] + (0 if last or (frame + 1) % tiles.columns == 0 else GAP)
        draw.rectangle((left, upper, end - 1, upper + BAR - 3), SEGMENTS[segment % 2])
        if frame and segment_of[frame - 1] != segment:
            border = left - GAP // 2 if frame % tiles.columns else left - GAP
            draw.rectangle((border - 1, upper, border, upper + tiles.step[1] - GAP), INK)
        caption = f"{frame} · {picture.times[frame]:.1f} s · seg. {segment + 1}"
        draw.text((left, upper + BAR), caption, FAINT, _font(11 if tiles.size[0] >= 110 else 9))
        image = Image.fromarray(pixels).resize(tiles.size, Image.Resampling.LANCZOS)
        sheet.paste(heat_tile(image, panel, frame, tiles), (left, upper + tiles.text))
        sheet.paste(fate_tile(image, panel, frame, tiles, numbers), (left, upper + tiles.text + tiles.size[1]))
    sheet.save(path)


def heat_tile(image: Image.Image, panel: Panel, frame: int, tiles: Tiles) -> Image.Image:
    """A frame under its saliency; grey where the method goes by none."""
    if panel.heat is None:
        return Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, (128, 128, 128)), 0.5)
    colours = heat_colours(_of_frame(panel.heat, frame, tiles))
    heat = Image.fromarray(colours).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image, heat, HEAT_SHARE)


def fate_tile(image: Image.Image, panel: Panel, frame: int, tiles: Tiles, numbers: dict[int, int]) -> Image.Image:
    """A frame with what became of its tokens; numbers: of the groups, see groups()."""
    roles = _of_frame(panel.roles, frame, tiles)
    joined = _of_frame(panel.joined, frame, tiles) if panel.joined is not None else np.full(tiles.grid, -1)
    bright = np.where(roles != GONE, 1.0, np.where(joined >= 0, MEMBER, DIM))
    bright = bright.repeat(tiles.cell[1], 0).repeat(tiles.cell[0], 1)[..., None]
    tile = Image.fromarray((np.asarray(image) * bright).astype(np.uint8))
    draw = ImageDraw.Draw(tile)
    static = None if panel.static is None else _of_frame(panel.static, frame, tiles)
    at = [(row, column) for row in range(tiles.grid[0]) for column in range(tiles.grid[1])]
    for row, column in at:
        if static is not None and static[row, column]:
            hatch(draw, _box(row, column, tiles))
    for row, column in at:
        if (number := numbers.get(int(joined[row, column]))) is not None:
            _outline(draw, joined, row, column, tiles, group_colour(number))
    for row, column in at:
        own = frame * roles.size + row * tiles.grid[1] + column
        mark(draw, _box(row, column, tiles), int(roles[row, column]), numbers.get(own))
    return tile


def hatch(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """A diagonal through a static place."""
    left, upper, right, lower = box
    draw.line((left, lower, right, upper), (200, 200, 205))


def mark(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], role: int, number: int | None) -> None:
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


def _outline(
    draw: ImageDraw.ImageDraw, joined: Array, row: int, column: int, tiles: Tiles, colour: Colour
) -> None:  # fmt: skip
    """The edges of a token towards tokens of other groups."""
    left, upper, right, lower = _box(row, column, tiles)
    sides = {(0, -1): (left, upper, left, lower), (0, 1): (right, upper, right, lower),
             (-1, 0): (left, upper, right, upper), (1, 0): (left, lower, right, lower)}  # fmt: skip
    for (down, across), line in sides.items():
        r, c = row + down, column + across
        if not (0 <= r < tiles.grid[0] and 0 <= c < tiles.grid[1]) or joined[r, c] != joined[row, column]:
            draw.line(line, colour, _stroke((left, upper, right, lower)))


def _box(row: int, column: int, tiles: Tiles) -> tuple[int, int, int, int]:
    """Pixels of a token in its picture, the last ones included."""
    width, height = tiles.cell
    return column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1


def _stroke(box: tuple[int, int, int, int]) -> int:
    return 1 if min(box[2] - box[0], box[3] - box[1]) < 12 else 2


def _of_frame(values: Array, frame: int, tiles: Tiles) -> Array:
    """The values (H, W) of one frame out of those of all tokens."""
    size = tiles.grid[0] * tiles.grid[1]
    return np.asarray(values[frame * size : (frame + 1) * size]).reshape(tiles.grid)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _head(picture: Picture, panel: Panel, width: int) -> Image.Image:
    """Title and what the picture is of, wrapped to a width."""
    frames, (rows, columns) = len(picture.frames), picture.grid
    segments = f"{len(panel.segments)} segment{'s' if len(panel.segments) > 1 else ''}"
    lines = [
        (f"{panel.method} at {panel.ratio:g}: {panel.count}", 22, INK),
        (f"{picture.video}, {frames} frames of {rows} x {columns} tokens, {segments}", 14, INK),
        (f"model: {picture.model}", 14, INK),
    ]
    if picture.question is not None:
        lines.append((f"{picture.question}  —  {panel.answer}  (unpruned: {picture.unpruned})", 14, INK))
    if picture.command is not None:
        lines.append((f"made by: {picture.command}", 12, FAINT))
    wrapped = [(line, size, ink) for text, size, ink in lines for line in _wrap(text, _font(size), width)]
    image = Image.new("RGB", (width, sum(round(1.4 * size) for _, size, _ in wrapped)), BACKGROUND)
    draw, upper = ImageDraw.Draw(image), 0
    for line, size, ink in wrapped:
        draw.text((0, upper), line, ink, _font(size))
        upper += round(1.4 * size)
    return image


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Text as lines no wider than so many pixels, broken at spaces, or anywhere in a longer word."""
    lines = [""]
    for word in text.split():
        while word:
            joint = f"{lines[-1]} {word}".lstrip()
            if font.getlength(joint) <= width:
                lines[-1], word = joint, ""
            elif lines[-1]:
                lines.append("")
            else:
                fits = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width))
                lines[-1], word = word[:fits], word[fits:]
                lines.append("")
    return [line for line in lines if line] or [""]


def _legend(panel: Panel, width: int) -> Image.Image:
    """Samples of what is in the sheet, drawn by the same functions, with their meaning."""
    size, font = 20, _font(13)
    entries: list[tuple[str, str]] = [("heat", "above: saliency, low to high" if panel.heat is not None
                                       else "above: this method goes by no saliency")]  # fmt: skip
    if panel.joined is None:
        entries += [("kept", "kept (this method does not tell how)"), ("gone", "not kept by itself")]
    else:
        entries += [("salient", "kept, salient"), ("context", "kept, merged; the tokens in it are outlined alike"),
                    ("static", "static place, one token for the segment"), ("gone", "dropped")]  # fmt: skip
        if bool((panel.roles == KEPT).any()):
            entries.append(("kept", "kept to fill the budget"))
    entries.append(("border", "border of segments"))
    image = Image.new("RGB", (width, 26 * (len(entries) + 1)), BACKGROUND)
    draw, left, upper = ImageDraw.Draw(image), 0, 0
    for kind, meaning in entries:
        sample = 60 if kind == "heat" else 2 * size if kind == "context" else size
        needed = sample + 6 + round(font.getlength(meaning))
        if left and left + needed > width:
            left, upper = 0, upper + 26
        image.paste(_sample(kind, panel, (sample, size)), (left, upper + 2))
        draw.text((left + sample + 6, upper + 4), meaning, INK, font)
        left += needed + 24
    return image.crop((0, 0, width, upper + 26))


def _sample(kind: str, panel: Panel, size: tuple[int, int]) -> Image.Image:
    """A piece of a made-up picture for the legend."""
    width, height = size
    image = Image.new("RGB", size, (120, 136, 120))
    draw, box = ImageDraw.Draw(image), (0, 0, height - 1, height - 1)
    if kind == "heat":
        if panel.heat is None:
            return Image.new("RGB", size, (128, 128, 128))
        ramp = heat_colours(np.linspace(0, 255, width).astype(np.uint8))
        return Image.fromarray(np.tile(ramp[None], (height, 1, 1)))
    if kind == "border":
        image.paste(BACKGROUND, (0, 0, width, height))
        draw.rectangle((width // 2 - 1, 0, width // 2, height), INK)
    elif kind == "static":
        hatch(draw, box)
    elif kind == "gone":
        image.paste(tuple(round(DIM * value) for value in (120, 136, 120)), (0, 0, width, height))
    elif kind == "context":
        draw.rectangle((0, 0, width - 1, height - 1), outline=group_colour(1))
        mark(draw, box, CONTEXT, 1)
    else:
        mark(draw, box, SALIENT if kind == "salient" else KEPT, None)
    return image
