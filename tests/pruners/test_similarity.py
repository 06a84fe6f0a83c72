"""The most similar centre by cosine: against the definition, with ties, zeros, blocks and centres left out."""

import pytest
import torch

import tango.pruners.similarity
from tango.pruners.similarity import most_similar


def direct(tokens, centres, allowed):
    """(indices, cosines) in fp64, one pair after another; the first of the best wins."""
    indices, cosines = [], []
    for token in tokens.double():
        best, chosen = -torch.inf, -1
        for place, centre in enumerate(centres.double()):
            norms = float(token.norm() * centre.norm())
            cosine = float(token @ centre) / norms if norms else 0.0
            if allowed[place] and cosine > best + 1e-7:  # copies tie whatever the rounding
                best, chosen = cosine, place
        indices.append(chosen)
        cosines.append(best)
    return indices, cosines


@pytest.mark.parametrize("block", [1, 1 << 24])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition(monkeypatch, block, masked):
    monkeypatch.setattr(tango.pruners.similarity, "BLOCK_BYTES", block)
    generator = torch.Generator().manual_seed(3)
    tokens, centres = torch.randn(3, 20, 7, generator=generator), torch.randn(3, 9, 7, generator=generator)
    centres[:, 4], centres[:, 7] = centres[:, 1], 0  # a copy and a zero
    tokens[:, 2], tokens[:, 5], tokens[:, 6] = 0, 3 * centres[:, 4], -centres[:, 1]
    allowed = torch.ones(3, 9, dtype=torch.bool)
    if masked:
        allowed = torch.rand(3, 9, generator=generator) < 0.5
        allowed[:, 4] = True
    nearest = most_similar(tokens, centres, allowed if masked else None)
    for group in range(3):
        indices, cosines = direct(tokens[group], centres[group], allowed[group])
        assert nearest.indices[group].tolist() == indices
        torch.testing.assert_close(nearest.cosines[group], torch.tensor(cosines), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [5, 64, 897])
def test_copies_tie_exactly(dim):
    """Wherever copies stand among the centres, their cosines are the same to the bit and the first one is chosen."""
    generator = torch.Generator().manual_seed(dim)
    one, tokens = torch.randn(dim, generator=generator), torch.randn(1, 50, dim, generator=generator)
    nearest = most_similar(tokens, one.expand(1, 133, dim))
    assert (nearest.indices == 0).all()
    again = most_similar(tokens[:, :1].expand(1, 50, dim), one.expand(1, 3, dim))
    assert len(again.cosines.unique()) == 1
