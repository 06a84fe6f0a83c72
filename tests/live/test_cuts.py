"""Cuts made as frames come are those of the finished clip."""

import pytest
import torch

from tango.live.cuts import Cuts
from tango.ops.segmentation import holitom


def clip(seed, frames=40, places=6, share=0.8):
    """Similarities of neighbours (F - 1, L); now and then nearly all places change."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(frames - 1, places, generator=generator)
    calm = torch.rand(frames - 1, 1, generator=generator) < share
    return torch.where(calm, similarity * 0.5 + 0.5, similarity * 0.7)


def watch(cuts, similarity):
    """What each frame closed."""
    return [cuts.add(None), *(cuts.add(row) for row in similarity)]


@pytest.mark.parametrize("seed", range(60))
def test_final_cuts_are_those_of_the_finished_clip(seed):
    similarity = clip(seed, share=0.5 + seed % 5 / 10)
    cuts = Cuts(0.65, window=100)
    closed = watch(cuts, similarity)
    sizes = [size for frame in closed for size, _ in frame]
    assert all(final for frame in closed for _, final in frame)
    whole = holitom(similarity, 0.65).tolist()
    assert whole[: len(sizes)] == sizes
    assert sum(sizes) + cuts.frames == len(similarity) + 1
    # What is open is cut, by itself, as in the whole clip.
    assert holitom(similarity[sum(sizes) :], 0.65).tolist() == whole[len(sizes) :]


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_that_is_final_is_moved_by_what_comes_later(seed):
    """By every continuation of a number of random ones."""
    start = clip(seed, frames=14, places=3)
    sizes = [size for frame in watch(Cuts(0.65, 100), start) for size, _ in frame]
    for other in range(30):
        whole = holitom(torch.cat([start, clip(1000 + other, frames=12, places=3)]), 0.65).tolist()
        assert whole[: len(sizes)] == sizes


def test_a_change_everywhere_closes_what_was_before_at_once():
    still, change = torch.full((5, 4), 0.9), torch.zeros(1, 4)
    closed = watch(Cuts(0.65, 100), torch.cat([still, change, still]))
    assert closed == [[]] * 6 + [[(6, True)]] + [[]] * 5


def test_a_scene_without_end_is_closed_when_the_window_is_full():
    cuts = Cuts(0.65, window=5)
    closed = watch(cuts, torch.full((16, 4), 0.9))
    assert closed == ([[]] * 5 + [[(5, False)]]) + ([[]] * 4 + [[(5, False)]]) * 2 + [[]]
    assert cuts.frames == 2


def test_more_is_open_than_a_window_at_no_time():
    cuts = Cuts(0.65, window=7)
    total = 0
    for number, row in enumerate([None, *clip(3, frames=200, places=40, share=0.95)]):
        total += sum(size for size, _ in cuts.add(row))
        assert cuts.frames <= 7 and total + cuts.frames == number + 1


def test_other_methods_get_whole_windows():
    closed = watch(Cuts(None, window=4), clip(0, frames=10))
    assert closed == [[]] * 4 + [[(4, False)]] + [[]] * 3 + [[(4, False)], []]
