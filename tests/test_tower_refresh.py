"""Ways to refresh still patches (benchmarks/tower_refresh.py): where all is fresh they are the layer itself, and what
is not computed comes from where the script says."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import tower_refresh as ways

from tango.models import reuse

FRAMES, SIDE = 4, 4


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    config = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)
    return SiglipVisionModel(config).eval().encoder.layers[0]


@pytest.fixture
def source():
    """Of 4 frames of 4 x 4 patches: in each frame one patch changes, in frame 2 those of a cell's corner."""
    pixels = torch.zeros(FRAMES, SIDE**2, 3)
    for frame, patch in ((1, 5), (2, 0), (3, 15)):
        pixels[frame:, patch] += 1
    return reuse.sources(pixels, 0.05, 16)


@torch.no_grad()
def test_what_is_computed_is_what_the_layer_says(layer, source):
    """With everything new in every frame each way is the layer; with nothing new `whole` alone is."""
    width = layer.self_attn.embed_dim
    hidden = torch.randn(FRAMES, SIDE**2, width)
    new = torch.arange(FRAMES)[:, None].expand(-1, SIDE**2)
    plain = layer(hidden, None)
    for does in ("states", "additions", "attention"):
        for fresh in ("none", "grid", "rotation", "half", "frames"):
            out = ways.layer_of(ways.Layer(does, fresh), layer, new)(hidden)
            torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)
            some = ways.layer_of(ways.Layer(does, fresh), layer, source)(hidden)
            computed = ways.refreshed(source, fresh) == torch.arange(FRAMES)[:, None]
            assert not torch.allclose(some[~computed], plain[~computed], atol=1e-3)
            if does != "states":  # whose keys and values are old ones
                torch.testing.assert_close(some[computed], plain[computed], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_additions_and_what_a_cell_carries(layer, source):
    """Patch by patch, in plain words."""
    width = layer.self_attn.embed_dim
    hidden = torch.randn(FRAMES, SIDE**2, width)
    added = layer(hidden, None) - hidden
    taken = ways.refreshed(source, "grid")
    carried = ways.layer_of(ways.Layer("additions", "grid", carried=True), layer, source)(hidden)
    without = ways.layer_of(ways.Layer("additions", "grid"), layer, source)(hidden)
    for frame in range(FRAMES):
        for patch in range(SIDE**2):
            corner = patch // SIDE // 2 * 2 * SIDE + patch % SIDE // 2 * 2
            before = int(taken[frame, patch])
            plain = hidden[frame, patch] + added[before, patch]
            torch.testing.assert_close(without[frame, patch], plain, atol=1e-5, rtol=1e-5)
            if source[frame, corner] == source[before, corner]:
                plain = plain + added[frame, corner] - added[before, corner]
            torch.testing.assert_close(carried[frame, patch], plain, atol=1e-5, rtol=1e-5)


def test_which_patches_are_fresh(source):
    numbers = torch.arange(FRAMES)[:, None]
    changed = source == numbers
    for fresh, share in (("none", 0.0), ("grid", 0.25), ("rotation", 0.25), ("half", 0.5), ("frames", 0.5)):
        taken = ways.refreshed(source, fresh)
        computed = taken == numbers
        assert computed[changed].all() and (taken <= numbers).all()
        assert computed.gather(0, taken).all(), "taken from a patch that was not computed"
        assert (source.gather(0, taken) == source).all(), "taken from another picture than its own"
        assert abs(float((computed & ~changed).sum() / (~changed).sum()) - share) < 0.25
    rotation = ways.refreshed(torch.zeros(FRAMES, SIDE**2, dtype=torch.int64), "rotation") == numbers
    assert rotation[1:].sum() == 3 * 4 and rotation.any(0).all()


def test_work(source):
    tower = 8, 16, SIDE**2  # a patch: queries 16, keys 16, attention 32, MLP 32
    new = torch.arange(FRAMES)[:, None].expand(-1, SIDE**2)
    share = float(reuse.computed(source).mean())
    assert ways.work([ways.WHOLE] * 2, source, *tower) == 1
    for kind, always in ((ways.STATES, 0), (ways.ADDED, 16), (ways.ATTENDED, 64)):
        assert ways.work([kind], new, *tower) == pytest.approx(1)
        assert ways.work([kind, ways.WHOLE], source, *tower) == pytest.approx(
            (96 + always + share * (96 - always)) / 192
        )


def test_one_decision(source):
    """A token of 2 x 2 patches is still from one frame to the next if none of its patches changed."""
    way = ways.Going(None)
    way.source = source
    still = way.still(torch.zeros(FRAMES, 4, 1))
    assert still.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]]
