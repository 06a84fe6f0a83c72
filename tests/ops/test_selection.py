"""Diversity-driven selection: the candidates, one token a cluster, and ties."""

import pytest
import torch
from oracle import Oracle

from tango.ops.selection import select


def unit(*shape, seed=0):
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=-1, keepdim=True)


def chosen_of(saliency, vectors, counts, expansion=1.5, neighbors=7, members=None):
    """The places that select() chooses of each set."""
    members = torch.ones_like(saliency, dtype=torch.bool) if members is None else members
    counts = [counts] * len(saliency) if isinstance(counts, int) else counts
    mask = select(
        saliency,
        members,
        members.sum(1).tolist(),
        counts,
        lambda places: vectors.flatten(0, 1)[places],
        vectors.shape[2],
        expansion,
        neighbors,
    )
    assert not (mask & ~members).any()
    return [row.nonzero()[:, 0].tolist() for row in mask]


def test_candidates_ties_go_to_the_lower_index():
    """With no more candidates than asked for, they are the selection."""
    saliency = torch.tensor([[0.5, 0.1, 0.5, 0.5, 0.9, 0.1]])
    for count, expected in ((1, [4]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4]), (6, list(range(6)))):
        assert chosen_of(saliency, unit(1, 6, 4), count, 1.0) == [expected]


def test_every_set_has_its_own_members_and_count():
    generator = torch.Generator().manual_seed(7)
    saliency, vectors = torch.rand(5, 24, generator=generator), unit(5, 24, 20)
    members = torch.rand(5, 24, generator=generator) < 0.6
    members[3], members[4] = True, False
    counts = [3, 0, 6, 16, 0]
    chosen = chosen_of(saliency, vectors, counts, members=members)
    for group, count in enumerate(counts):
        places = members[group].nonzero()[:, 0]
        expected = Oracle().select(vectors[group, places], saliency[group, places], count)
        assert chosen[group] == places[expected].tolist()


@pytest.mark.parametrize("count", [0, 1, 5, 11, 16, 24, 30])
@pytest.mark.parametrize("expansion", [1.0, 1.5, 2.5])
def test_equals_the_oracle_in_batch(count, expansion):
    vectors = unit(6, 24, 20)
    saliency = torch.rand(6, 24, generator=torch.Generator().manual_seed(1)).mul(8).floor() / 8  # with ties
    count = min(count, 24)
    chosen = chosen_of(saliency, vectors, count, expansion)
    oracle = Oracle(expansion=expansion)
    for group in range(6):
        assert chosen[group] == oracle.select(vectors[group], saliency[group], count).tolist()


def test_the_most_salient_of_each_cluster():
    # Three tight clusters; the most salient member of each is not where the density peaks are.
    centres = torch.eye(3, 6)
    points = centres.repeat_interleave(4, 0) + 0.05 * unit(12, 6)
    points = (points / points.norm(dim=-1, keepdim=True))[None]
    saliency = torch.tensor([[1, 2, 3, 4, 9, 8, 7, 6, 1, 5, 5, 1.0]])
    assert chosen_of(saliency, points, 3, 9.0, 3) == [[3, 4, 9]]


@pytest.mark.parametrize("points", [torch.zeros(1, 9, 4), unit(1, 1, 4).expand(1, 9, 4)])
def test_equal_tokens_never_give_a_duplicate(points):
    assert chosen_of(torch.ones(1, 9), points, 6) == [[0, 1, 2, 3, 4, 5]]
