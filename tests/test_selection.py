"""Diversity-driven selection: the candidates, one token a cluster, and ties."""

import pytest
import torch
from oracle import Oracle

from tango.selection import candidates, select


def unit(*shape, seed=0):
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=-1, keepdim=True)


def both(saliency, vectors, count, expansion=1.5, neighbors=7):
    """candidates() and select() together: places in the whole set (G, count)."""
    pool = candidates(saliency, count, expansion)
    near = vectors.gather(1, pool[..., None].expand(-1, -1, vectors.shape[2]))
    return pool.gather(1, select(saliency.gather(1, pool), near, count, neighbors))


def test_candidates_ties_go_to_the_lower_index():
    saliency = torch.tensor([[0.5, 0.1, 0.5, 0.5, 0.9, 0.1]])
    assert candidates(saliency, 2, 1.0).tolist() == [[0, 4]]
    assert candidates(saliency, 2, 1.5).tolist() == [[0, 2, 4]]
    assert candidates(saliency, 5, 1.0).tolist() == [[0, 1, 2, 3, 4]]
    assert candidates(saliency, 5, 9.0).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert candidates(torch.zeros(2, 4), 1, 3.0).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("count, size", [(1, 1), (2, 3), (7, 10), (13, 19)])
def test_candidate_pool_is_the_whole_part(count, size):
    assert candidates(torch.rand(1, 40), count, 1.5).shape[1] == size


@pytest.mark.parametrize("count", [0, 1, 5, 11, 16, 24, 30])
@pytest.mark.parametrize("expansion", [1.0, 1.5, 2.5])
def test_equals_the_oracle_in_batch(count, expansion):
    vectors = unit(6, 24, 20)
    saliency = torch.rand(6, 24, generator=torch.Generator().manual_seed(1)).mul(8).floor() / 8  # with ties
    count = min(count, 24)
    chosen = both(saliency, vectors, count, expansion)
    assert chosen.shape == (6, count)
    oracle = Oracle(expansion=expansion)
    for group in range(6):
        assert chosen[group].tolist() == oracle.select(vectors[group], saliency[group], count).tolist()


def test_more_than_there_are_keeps_all():
    assert select(torch.rand(2, 3), unit(2, 3, 4), 5).tolist() == [[0, 1, 2]] * 2


def test_the_most_salient_of_each_cluster():
    # Three tight clusters; the most salient member of each is not where the density peaks are.
    centres = torch.eye(3, 6)
    points = centres.repeat_interleave(4, 0) + 0.05 * unit(12, 6)
    points = (points / points.norm(dim=-1, keepdim=True))[None]
    saliency = torch.tensor([[1, 2, 3, 4, 9, 8, 7, 6, 1, 5, 5, 1.0]])
    assert select(saliency, points, 3, 3).tolist() == [[3, 4, 9]]


@pytest.mark.parametrize("points", [torch.zeros(1, 9, 4), unit(1, 1, 4).expand(1, 9, 4)])
def test_equal_tokens_never_give_a_duplicate(points):
    assert select(torch.ones(1, 9), points, 6).tolist() == [[0, 1, 2, 3, 4, 5]]
