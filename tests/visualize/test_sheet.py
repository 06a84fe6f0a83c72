"""Contact sheets: colours at known places, nothing left out, and a layout that holds any number of frames."""

from dataclasses import replace

import numpy as np
import pytest
import small_picture
from PIL import Image
from small_picture import ALONE, CONTEXT, DROPPED, FRAMES, GREY, SALIENT, STATIC, TOKENS

from tango.visualize import sheet
from tango.visualize.picture import HEAT, SALIENT_COLOUR, group_colour, groups, heat_colours, heat_of
from tango.visualize.sheet import BAR, CAPTION, LABEL, LEAST_WIDTH, MARGIN, SEGMENTS, draw_method, draw_sheets
from tango.visualize.tiles import DIM, GAP, HEAT_OPACITY, MEMBER, SMALLEST_CELL, Tiles


def tile_of(picture, panel, frame, kind="fates"):
    tiles = Tiles(picture)
    tile = tiles.heat(panel, frame) if kind == "heat" else tiles.fates(panel, frame, groups(panel.joined))
    return np.asarray(tile), tiles


def pixel(tile, tiles, token, x=0.5, y=0.3):
    """The colour of a token x and y of the way through its width and height."""
    row, column = divmod(token % TOKENS, tiles.grid[1])
    return tuple(int(v) for v in tile[int((row + y) * tiles.cell[1]), int((column + x) * tiles.cell[0])])


def test_what_became_of_a_token_shows():
    picture = small_picture.picture()
    panel = picture.panels[0][0]
    numbers = groups(panel.joined)
    assert numbers == {STATIC: 0, CONTEXT: 1}
    grey = [GREY - 10 * frame for frame in range(FRAMES)]

    first, tiles = tile_of(picture, panel, 0)
    assert pixel(first, tiles, SALIENT) == (grey[0],) * 3  # kept: as bright as it was
    assert pixel(first, tiles, SALIENT, x=2.5 / tiles.cell[0]) == SALIENT_COLOUR
    assert pixel(first, tiles, SALIENT, x=0) == (0, 0, 0)
    assert pixel(first, tiles, 1) == (int(grey[0] * MEMBER),) * 3
    assert pixel(first, tiles, 1, x=0) == group_colour(1)  # a member of the token that stands in the next frame
    assert pixel(first, tiles, STATIC, x=0) == group_colour(0)  # salient, and for more than one frame
    assert pixel(first, tiles, 2) == pixel(first, tiles, 3) == (int(grey[0] * DIM),) * 3

    second, _ = tile_of(picture, panel, 1)
    assert pixel(second, tiles, CONTEXT, y=0.5) == group_colour(1)  # the spot in the middle
    assert pixel(second, tiles, CONTEXT, x=0) == group_colour(1)
    assert pixel(second, tiles, 8, y=0.5) == (int(grey[1] * MEMBER),) * 3
    # 7 and 8 are neighbours of one group: no line between them.
    assert pixel(second, tiles, 8, x=0) == (int(grey[1] * MEMBER),) * 3
    assert pixel(second, tiles, 8, x=0.999) == group_colour(1)
    diagonal = pixel(second, tiles, 11, x=0.5, y=0.5 - 0.5 / tiles.cell[1])
    assert diagonal != (int(grey[1] * MEMBER),) * 3  # static places are hatched

    third, _ = tile_of(picture, panel, 2)
    assert pixel(third, tiles, ALONE, y=0.5) not in {(grey[2],) * 3, group_colour(0), group_colour(1)}
    last, _ = tile_of(picture, panel, 3)
    assert pixel(last, tiles, DROPPED) == (int(grey[3] * DIM),) * 3


def test_heat_is_the_frame_under_its_saliency():
    picture = small_picture.picture()
    panel = picture.panels[0][0]
    tile, tiles = tile_of(picture, panel, 0, "heat")
    for token, colour in ((SALIENT, HEAT[-1]), (1, HEAT[0])):
        expected = [round(GREY + HEAT_OPACITY * (channel - GREY)) for channel in colour]
        assert np.abs(np.array(pixel(tile, tiles, token)) - expected).max() <= 1
    plain, tiles = tile_of(picture, small_picture.kept_only(), 0, "heat")
    assert np.array_equal(plain, np.asarray(tiles.images[0]))


def test_a_token_of_several_kept_ones_is_drawn_as_part_of_the_nearest():
    picture = small_picture.picture(((small_picture.twice(),),))
    panel = picture.panels[0][0]
    assert groups(panel.joined) == {STATIC: 0, CONTEXT: 1, ALONE: 2}
    tile, tiles = tile_of(picture, panel, 0)
    assert pixel(tile, tiles, 1, x=0) == group_colour(1)
    tile, tiles = tile_of(picture, panel, 2)
    assert pixel(tile, tiles, ALONE, y=0.5) == group_colour(2)


def test_a_method_that_keeps_tokens_as_they_are():
    picture = small_picture.picture(((small_picture.kept_only(kept=(2,)),),))
    tile, tiles = tile_of(picture, picture.panels[0][0], 0)
    assert pixel(tile, tiles, 2) == (GREY,) * 3
    assert pixel(tile, tiles, 0) == pixel(tile, tiles, 3) == (int(GREY * DIM),) * 3


@pytest.mark.parametrize("columns", [FRAMES, 3])
def test_a_method_has_every_frame_at_every_ratio_and_the_segments(columns):
    row = (small_picture.panel(), small_picture.panel(ratio=0.5, segments=(1, 3)))
    picture = small_picture.picture((row,))
    tiles = Tiles(picture)
    assert tiles.columns == FRAMES
    tiles.columns = columns
    width, height = tiles.size
    drawn = np.asarray(draw_method(picture, row, tiles, FRAMES * (width + GAP)))
    strip = LABEL + BAR + height
    step = CAPTION + height + 2 * strip + 2 * GAP
    title = len(drawn) - -(-FRAMES // columns) * step
    assert len(np.unique(drawn[:title])) > 5  # there is text
    for number, panel in enumerate(row):
        segment = np.repeat(np.arange(2), panel.segments)
        for frame in range(FRAMES):
            left, upper = frame % columns * (width + GAP), title + frame // columns * step
            heat, _ = tile_of(picture, panel, frame, "heat")
            assert np.array_equal(drawn[upper + CAPTION :, left:][:height, :width], heat)
            top = upper + CAPTION + height + number * strip + LABEL
            fates, _ = tile_of(picture, panel, frame)
            edge = 2 if left == 0 and frame else 0  # a border of segments at the edge is drawn over the frame
            assert np.array_equal(drawn[top + BAR :, left:][:height, edge:width], fates[:, edge:])
            assert tuple(drawn[top, left + 2]) == SEGMENTS[segment[frame] % 2]
            if frame and left:
                border = drawn[top + BAR + 5, left - GAP // 2]
                assert (border.max() < 50) == (segment[frame] != segment[frame - 1])


def test_one_sheet_unless_it_would_be_too_large(tmp_path, monkeypatch):
    rows = tuple((replace(small_picture.panel(name), answer="This."),) for name in ("tango", "holitom", "prunevid"))
    picture = small_picture.picture(rows, question="What?", unpruned="That.", command="tango visualize clip.mp4")
    (whole,) = draw_sheets(picture, tmp_path)
    tiles = Tiles(picture)
    section = draw_method(picture, rows[0], tiles, FRAMES * (tiles.size[0] + GAP) - GAP)
    image = np.asarray(Image.open(whole))
    assert whole == tmp_path / "sheet.png" and image.shape[1] == section.width + 2 * MARGIN
    top = len(image) - MARGIN - 3 * section.height - 2 * GAP
    for number, row in enumerate(rows):
        upper = top + number * (section.height + GAP)
        expected = np.asarray(draw_method(picture, row, tiles, section.width))
        assert np.array_equal(image[upper : upper + section.height, MARGIN:-MARGIN], expected)
    assert len(np.unique(image[:top].reshape(-1, 3), axis=0)) > 20  # there is a title, and a legend in colour

    monkeypatch.setattr(sheet, "LARGEST_SHEET", 2.5 * section.height * image.shape[1])
    paths = draw_sheets(picture, tmp_path)
    assert [path.name for path in paths] == ["sheet.png", "sheet_2.png"]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert np.array_equal(first[:top], image[:top]) and np.array_equal(second[:top], image[:top])
    assert np.array_equal(second[top:], image[top + 2 * (section.height + GAP) :])


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 64, 128, 500])
@pytest.mark.parametrize("grid, size", [((14, 14), (384, 384)), ((8, 8), (128, 128)), ((20, 36), (720, 1280))])
def test_any_number_of_frames_has_room(frames, grid, size):
    tiles = Tiles(small_picture.picture(frames=np.broadcast_to(np.uint8(0), (frames, *size, 3)), grid=grid))
    assert min(frames, 8) <= tiles.columns <= frames
    assert min(tiles.cell) >= SMALLEST_CELL
    assert tiles.columns * (tiles.size[0] + GAP) * -(-frames // tiles.columns) * 2 * tiles.size[1] < 150e6  # pixels


def test_titles_of_any_length_and_script_are_drawn(tmp_path):
    long = "very_long_name_" * 40 + ".mp4"
    for video in (long, "видео — vidéo <b>&.mp4", "a"):
        picture = small_picture.picture(video=video)
        draw_sheets(picture, tmp_path)
        assert Image.open(tmp_path / "sheet.png").width >= LEAST_WIDTH


def test_heat_scale():
    saliency = np.linspace(0, 1, 201).astype(np.float32)
    saliency[7] = 1000.0  # one sink does not darken everything else
    heat = heat_of(saliency)
    assert heat.dtype == np.uint8 and heat[0] == 0 and heat[7] == heat[200] == 255
    assert abs(int(heat[100]) - 128) <= 3
    assert not heat_of(np.full(5, 0.3, np.float32)).any()
    assert heat_of(np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0, 0, 0, 255]
    assert heat_colours(np.array([0, 255], np.uint8)).tolist() == [list(HEAT[0]), list(HEAT[-1])]
