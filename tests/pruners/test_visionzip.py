"""VisionZip: the published code's own numbers, a plain slow version, and its order and budgets by hand."""

import math

import pytest
import torch
from golden_cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checks import check_golden, check_properties, check_refusals, same
from slow_peers import visionzip
from videos import made_up

from tango.pruners.visionzip import VisionZip

videos = {
    "frames": st.integers(1, 4),
    "grid": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "dim": st.sampled_from([3, 8]),
    "seed": st.integers(0, 9999),
    "copies": st.sampled_from([0.0, 0.3, 1.0]),
    "zeros": st.sampled_from([0.0, 0.2]),
}
quick = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("path", cases("visionzip"), ids=lambda path: path.stem)
def test_published_numbers(path):
    _, parameters, pruned = check_golden(VisionZip, path)
    assert len(pruned.indices) == parameters["num_frames"] * parameters["tokens_per_frame"]
    # The ratio alone says as much.
    by_ratio = VisionZip(parameters["retention_ratio"], dominant_ratio=parameters["dominant_ratio"])
    total = math.ceil(parameters["grid_height"] * parameters["grid_width"] * by_ratio.retention_ratio)
    assert total == parameters["tokens_per_frame"]


def test_all_cases_are_here():
    assert len(cases("visionzip")) == 6


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99), share=st.sampled_from([0, 0.5, 54 / 64, 1]))
def test_equals_the_slow_version(video, ratio, share):
    features, saliency, grid, _ = made_up(**video)
    keys = features[..., :2] + torch.randn(*saliency.shape, 2, generator=torch.Generator().manual_seed(1)).round()
    pruned = VisionZip(ratio, dominant_ratio=share).prune(features, saliency, grid, keys=keys)
    same(pruned, *visionzip(features, saliency, keys, ratio, share))


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_properties(video, ratio):
    check_properties(VisionZip, lambda f, n, r: f * math.ceil(n * r), video, ratio)


def test_by_hand():
    """Ten tokens, six kept: four dominant, and of the six others the first and fourth gather the rest by their keys."""
    features = torch.arange(1.0, 11.0).view(1, 10, 1)
    saliency = torch.tensor([[0, 9, 0, 8, 0, 7, 0, 6, 0, 0.0]])
    keys = torch.tensor([[1.0, 0], [0, 0], [1, 0.05], [0, 0], [0, 1], [0, 0], [1, 0.2], [0, 0], [0.1, 1], [-1, 0]])[
        None
    ]
    pruned = VisionZip(tokens_per_frame=6, dominant_ratio=0.7).prune(features, saliency, (2, 5), keys=keys)
    assert pruned.indices.tolist() == [1, 3, 5, 7, 0, 6]
    # 2 (value 3) is as 0 (1), 4 and 8 (5, 9) are nearest to 6 (7); 9 (10) points away from both, least from 6.
    assert pruned.features[:, 0].tolist() == [2, 4, 6, 8, 1 + 3, 7 + (5 + 9 + 10) / 3]


def test_exact_budget_is_spread_over_frames():
    features, saliency, grid, _ = made_up(5, (3, 3), 6)
    keys = features[..., :3]
    pruned = VisionZip(0.3, exact_budget=True).prune(features, saliency, grid, keys=keys)
    assert torch.bincount(pruned.indices // 9).tolist() == [2, 3, 3, 3, 3]  # round(13.5) = 14
    for frame, total in enumerate([2, 3, 3, 3, 3]):
        own = (pruned.indices // 9 == frame).nonzero()[:, 0]
        part = slice(frame, frame + 1)
        indices, values = visionzip(features[part], saliency[part], keys[part], 0.3, total=total)
        assert (pruned.indices[own] - 9 * frame).tolist() == indices
        torch.testing.assert_close(pruned.features[own].double(), torch.stack(values), atol=1e-5, rtol=1e-5)


def test_refusals():
    check_refusals(VisionZip(), [("dominant_ratio", 1.1), ("tokens_per_frame", 0), ("retention_ratio", 0)])
    features, saliency, grid, _ = made_up(2, (2, 2), 4)
    with pytest.raises(ValueError, match="keys are missing"):
        VisionZip().prune(features, saliency, grid)
    with pytest.raises(ValueError, match="keys must have shape"):
        VisionZip().prune(features, saliency, grid, keys=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="keys must be finite"):
        VisionZip().prune(features, saliency, grid, keys=torch.full((2, 4, 3), torch.nan))
    with pytest.raises(ValueError, match=r"VisionZip.tokens_per_frame = 5: a frame of this video has only 4 tokens"):
        VisionZip(tokens_per_frame=5).prune(features, saliency, grid, keys=torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"VisionZip.tokens_per_frame = 2: expected None with exact_budget"):
        VisionZip(tokens_per_frame=2, exact_budget=True)
