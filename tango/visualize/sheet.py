"""A picture as one contact sheet (PNG).

For each method it shows every frame under its saliency, and below, for each ratio, what became of the frame's tokens.
What would be too large for one file goes on in the next, by methods.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tango.inference.files import write_whole
from tango.pruners.trace import CONTEXT, KEPT, SALIENT
from tango.visualize.picture import Colour, Panel, Picture, group_colour, groups, heat_colours
from tango.visualize.tiles import DIM, GAP, Tiles, hatch, mark

BACKGROUND, INK, FAINT = (255, 255, 255), (24, 24, 28), (110, 110, 118)
SEGMENTS: tuple[Colour, Colour] = ((59, 108, 178), (142, 176, 222))  # bars of segments, in turn
LEAST_WIDTH, MARGIN = 760, 20  # pixels
CAPTION, LABEL, BAR = 18, 20, 6  # height of the lines above a row of frames: times; the ratio; the bar of segments
LARGEST_SHEET = 80e6  # pixels; viewers may refuse larger ones
Line = tuple[str, int, Colour]  # text, size of its font, colour


def draw_sheets(picture: Picture, folder: Path) -> tuple[Path, ...]:
    """Write sheet.png, and where it would be too large sheet_2.png and so on, each with whole methods."""
    tiles = Tiles(picture)
    width = max(LEAST_WIDTH, tiles.columns * (tiles.size[0] + GAP) - GAP) + 2 * MARGIN
    head, legend = _text(_about(picture), width - 2 * MARGIN), draw_legend(picture, width - 2 * MARGIN)
    paths: list[Path] = []
    parts, height = [head, legend], 0
    for row in picture.panels:
        section = draw_method(picture, row, tiles, width - 2 * MARGIN)
        if len(parts) > 2 and width * (height + section.height) > LARGEST_SHEET:
            paths.append(_write(parts, width, folder, len(paths) + 1))
            parts, height = [head, legend], 0
        parts.append(section)
        height += section.height
    return (*paths, _write(parts, width, folder, len(paths) + 1))


def _write(parts: Sequence[Image.Image], width: int, folder: Path, number: int) -> Path:
    """Put parts below one another into a sheet."""
    sheet = Image.new("RGB", (width, sum(part.height + GAP for part in parts) + 2 * MARGIN - GAP), BACKGROUND)
    upper = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, upper))
        upper += part.height + GAP
    path = folder / ("sheet.png" if number == 1 else f"sheet_{number}.png")
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_whole(path, content.getvalue())
    return path


def draw_method(picture: Picture, row: Sequence[Panel], tiles: Tiles, width: int) -> Image.Image:
    """A method's part of the sheet: its name, what it kept at each ratio, and the rows of frames."""
    lines: list[Line] = [(row[0].method + ("" if row[0].heat is not None else ", by no saliency"), 22, INK)]
    for panel in row:
        segments = f"{len(panel.segments)} segment{'s' if len(panel.segments) > 1 else ''}"
        answer = "" if panel.answer is None else f"  —  {panel.answer}"
        lines.append((f"at {panel.ratio:g}: {panel.count}, {segments}{answer}", 14, INK))
    title = _text(lines, width)
    strip = LABEL + BAR + tiles.size[1]
    step = CAPTION + tiles.size[1] + len(row) * strip + 2 * GAP
    count = len(picture.frames)
    section = Image.new("RGB", (width, title.height + -(-count // tiles.columns) * step), BACKGROUND)
    section.paste(title, (0, 0))
    draw, small = ImageDraw.Draw(section), _font(11 if tiles.size[0] >= 80 else 9)
    numbers = [groups(panel.joined) for panel in row]
    segment_of = [np.repeat(np.arange(len(panel.segments)), panel.segments) for panel in row]
    for frame in range(count):
        left, upper = frame % tiles.columns * (tiles.size[0] + GAP), title.height + frame // tiles.columns * step
        draw.text((left, upper + 2), f"{frame} · {picture.times[frame]:.1f} s", FAINT, small)
        section.paste(tiles.heat(row[0], frame), (left, upper + CAPTION))
        for number, panel in enumerate(row):
            top = upper + CAPTION + tiles.size[1] + number * strip
            if left == 0:
                draw.text((0, top + 3), f"at {panel.ratio:g}", INK, _font(12))
            section.paste(tiles.fates(panel, frame, numbers[number]), (left, top + LABEL + BAR))
            _segments(draw, segment_of[number].tolist(), frame, (left, top + LABEL), tiles)
    return section


def _segments(
    draw: ImageDraw.ImageDraw, segment_of: list[int], frame: int, corner: tuple[int, int], tiles: Tiles
) -> None:
    """The bar of a frame's segment above it, and a line before it where a segment begins; corner: of the bar."""
    (left, upper), (width, height) = corner, tiles.size
    last = frame + 1 == len(segment_of) or segment_of[frame + 1] != segment_of[frame]
    # The bar runs on to the next frame of the same segment, so that gaps in it are the borders of segments.
    end = left + width + (0 if last or (frame + 1) % tiles.columns == 0 else GAP)
    draw.rectangle((left, upper, end - 1, upper + BAR - 3), SEGMENTS[segment_of[frame] % 2])
    if frame and segment_of[frame - 1] != segment_of[frame]:
        border = left - GAP // 2 if left else 1  # at the edge of the sheet it is drawn over the frame
        draw.rectangle((border - 1, upper, border, upper + BAR + height - 1), INK)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _about(picture: Picture) -> list[Line]:
    """What the picture is of."""
    rows, columns = picture.grid
    lines: list[Line] = [
        (f"{picture.video}, {len(picture.frames)} frames of {rows} x {columns} tokens", 16, INK),
        (f"model: {picture.model}", 14, INK),
    ]
    if picture.question is not None:
        lines.append((f"{picture.question}  —  unpruned: {picture.unpruned}", 14, INK))
    if picture.command is not None:
        lines.append((f"made by: {picture.command}", 12, FAINT))
    return lines


def _text(lines: Sequence[Line], width: int) -> Image.Image:
    """Lines of text, wrapped to a width."""
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


def draw_legend(picture: Picture, width: int) -> Image.Image:
    """Samples of what is in the sheet, drawn by the same functions, with their meaning."""
    panels = [panel for row in picture.panels for panel in row]
    meanings = {
        "heat": ("saliency, low to high", any(panel.heat is not None for panel in panels)),
        "salient": ("kept, salient", any((panel.roles == SALIENT).any() for panel in panels)),
        "context": (
            "kept, merged; the tokens in it are outlined alike",
            any((panel.roles == CONTEXT).any() for panel in panels),
        ),
        "kept": ("kept as it is", any((panel.roles == KEPT).any() for panel in panels)),
        "static": ("static place: alike in all of its segment", any(panel.static.any() for panel in panels)),
        "gone": ("dropped", True),
        "border": ("border of segments", any(len(panel.segments) > 1 for panel in panels)),
    }
    size, font = 20, _font(13)
    entries = [(kind, meaning) for kind, (meaning, there) in meanings.items() if there]
    image = Image.new("RGB", (width, 26 * (len(entries) + 1)), BACKGROUND)
    draw, left, upper = ImageDraw.Draw(image), 0, 0
    for kind, meaning in entries:
        sample = {"heat": 3, "context": 2}.get(kind, 1) * size
        needed = sample + 6 + round(font.getlength(meaning))
        if left and left + needed > width:
            left, upper = 0, upper + 26
        image.paste(_sample(kind, (sample, size)), (left, upper + 2))
        draw.text((left + sample + 6, upper + 4), meaning, INK, font)
        left += needed + 24
    return image.crop((0, 0, width, upper + 26))


def _sample(kind: str, size: tuple[int, int]) -> Image.Image:
    """A piece of a made-up picture for the legend."""
    width, height = size
    image = Image.new("RGB", size, (120, 136, 120))
    draw, box = ImageDraw.Draw(image), (0, 0, height - 1, height - 1)
    if kind == "heat":
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
