"""Contact sheets: colours at known places, nothing left out, and a layout that holds any number of frames."""

from dataclasses import replace

import numpy as np
import pytest
import small_picture
from PIL import Image
from small_picture import ALONE, CONTEXT, DROPPED, FRAMES, GREY, SALIENT, STATIC, TOKENS

from tango.visualize.picture import HEAT, SALIENT_COLOUR, group_colour, groups, heat_colours, heat_of
from tango.visualize.sheet import (
    DIM,
    GAP,
    HEAT_SHARE,
    LEAST_WIDTH,
    MARGIN,
    MEMBER,
    SEGMENTS,
    SMALLEST_CELL,
    Tiles,
    draw_sheet,
    fate_tile,
    heat_tile,
)


def tile_of(picture, panel, frame, draw=fate_tile):
    tiles = Tiles(picture)
    image = Image.fromarray(picture.frames[frame]).resize(tiles.size)
    tile = draw(image, panel, frame, tiles, *([groups(panel.joined)] if draw is fate_tile else []))
    return np.asarray(tile), tiles


def pixel(tile, tiles, token, x=0.5, y=0.3):
    """The colour of a token at a share of its width and height; in the middle of its upper part by default."""
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
    tile, tiles = tile_of(picture, panel, 0, heat_tile)
    for token, colour in ((SALIENT, HEAT[-1]), (1, HEAT[0])):
        expected = [round(GREY + HEAT_SHARE * (channel - GREY)) for channel in colour]
        assert np.abs(np.array(pixel(tile, tiles, token)) - expected).max() <= 1
    grey, _ = tile_of(picture, small_picture.kept_only(), 0, heat_tile)
    assert len(np.unique(grey)) == 1


def test_a_method_that_tells_no_more_than_what_it_keeps(tmp_path):
    picture = small_picture.picture(((small_picture.kept_only(kept=(2,)),),))
    panel = picture.panels[0][0]
    tiles = Tiles(picture)
    tile = np.asarray(fate_tile(Image.fromarray(picture.frames[0]).resize(tiles.size), panel, 0, tiles, {}))
    assert pixel(tile, tiles, 2) == (GREY,) * 3
    assert pixel(tile, tiles, 0) == pixel(tile, tiles, 3) == (int(GREY * DIM),) * 3
    draw_sheet(picture, panel, tmp_path / "sheet.png")


def test_the_sheet_holds_every_frame_and_the_segments(tmp_path):
    picture = small_picture.picture(question="What?", unpruned="That.", command="tango visualize clip.mp4")
    panel = replace(picture.panels[0][0], answer="This.")
    path = tmp_path / "sheet.png"
    draw_sheet(picture, panel, path)
    sheet = np.asarray(Image.open(path))
    tiles = Tiles(picture)
    assert tiles.columns == FRAMES and tiles.rows == 1
    bars = np.flatnonzero((sheet[:, MARGIN] == SEGMENTS[0]).all(-1))
    top = int(bars[0])
    assert sheet.shape == (top + tiles.step[1] + MARGIN, max(LEAST_WIDTH, 2 * MARGIN + FRAMES * tiles.step[0] - GAP), 3)
    colours = [tuple(sheet[top, MARGIN + frame * tiles.step[0]]) for frame in range(FRAMES)]
    assert colours == [SEGMENTS[0], SEGMENTS[0], SEGMENTS[1], SEGMENTS[1]]
    gaps = [tuple(sheet[top, MARGIN + (frame + 1) * tiles.step[0] - GAP + 1]) for frame in range(FRAMES - 1)]
    assert gaps == [SEGMENTS[0], (255, 255, 255), SEGMENTS[1]]
    for frame in range(FRAMES):
        left, upper = MARGIN + frame * tiles.step[0], top + tiles.text
        for draw, at in ((heat_tile, upper), (fate_tile, upper + tiles.size[1])):
            tile, _ = tile_of(picture, panel, frame, draw)
            assert np.array_equal(sheet[at : at + tiles.size[1], left : left + tiles.size[0]], tile)
    assert len(np.unique(sheet[:top].reshape(-1, 3), axis=0)) > 20  # there is a title, and a legend in colour


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 64, 128, 500])
@pytest.mark.parametrize("grid, size", [((14, 14), (384, 384)), ((8, 8), (128, 128)), ((20, 36), (720, 1280))])
def test_any_number_of_frames_has_room(frames, grid, size):
    tiles = Tiles(small_picture.picture(frames=np.broadcast_to(np.uint8(0), (frames, *size, 3)), grid=grid))
    assert tiles.columns * tiles.rows >= frames > tiles.columns * (tiles.rows - 1)
    assert min(tiles.cell) >= SMALLEST_CELL
    corners = [tiles.corner(frame) for frame in range(frames)]
    assert len(set(corners)) == frames
    width, height = tiles.columns * tiles.step[0], tiles.rows * tiles.step[1]
    assert width * height < 150e6  # pixels
    assert all(left + tiles.size[0] <= width and upper + tiles.step[1] <= height for left, upper in corners)


def test_titles_of_any_length_and_script_are_drawn(tmp_path):
    long = "very_long_name_" * 40 + ".mp4"
    for video in (long, "видео — vidéo <b>&.mp4", "a"):
        picture = small_picture.picture(video=video)
        draw_sheet(picture, picture.panels[0][0], tmp_path / "sheet.png")
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
