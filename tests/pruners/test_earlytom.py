"""EarlyTom: the published code's own numbers, a budget worked by hand, and frames that a tower has merged."""

import pytest
import torch
from golden_cases import cases, read

from tango.pruners import EarlyTom, VideoTokens
from tango.pruners.earlytom import pairs

CASES = cases("earlytom")


def case(path):
    tensors, parameters, _ = read(path)
    settings = {name: parameters[name] for name in ("retention_ratio", "similarity_threshold", "ema", "max_window")}
    return tensors, parameters, EarlyTom(**settings)


def test_all_cases_are_here():
    assert len(CASES) == 6


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_frames_are_grouped_and_merged(path):
    tensors, _, method = case(path)
    states, attention = tensors["features"], tensors["attention"]
    assert method.group(states) == [tuple(pair) for pair in tensors["first_groups"].tolist()]
    merged, weights, stands = method.merge(states, attention)
    torch.testing.assert_close(merged, tensors["merged_hidden_states"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights, tensors["merged_attention"], atol=1e-6, rtol=1e-6)
    assert method.group(merged) == [tuple(pair) for pair in tensors["groups"].tolist()]
    assert stands.tolist() == sorted(set(stands.tolist())) and stands[0] == 0 and stands[-1] == len(states) - 1


@pytest.mark.parametrize("in_tower", [False, True])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_kept_tokens(path, in_tower):
    """Of the states as features, merged by prune(); and of frames that a tower has merged, those gone filled in."""
    tensors, parameters, method = case(path)
    states, attention = tensors["features"], tensors["attention"]
    merged, weights, stands = method.merge(states, attention)
    if in_tower:
        copied = torch.searchsorted(stands, torch.arange(len(states)), right=True) - 1
        groups = torch.full((len(states),), -1)
        for number, (start, end) in enumerate(tensors["groups"].tolist()):
            groups[stands[start : end + 1]] = number
        pruned = method.prune_tokens(VideoTokens(merged[copied], saliency=weights[copied], frame_groups=groups))
    else:
        pruned = method.prune(states, attention)
    tokens = states.shape[1]
    wanted = tensors["output_indices"]
    assert torch.equal(pruned.indices, stands[wanted // tokens] * tokens + wanted % tokens)
    torch.testing.assert_close(pruned.features, tensors["output_features"], atol=1e-6, rtol=1e-6)
    assert int(pruned.segment_sizes.sum()) == parameters["num_frames"]
    assert len(pruned.segment_sizes) == len(tensors["groups"])


def test_a_budget_by_hand():
    """Ten equal frames of ten tokens, r = 0.2.

    Groups of five: the first, three between, the last. Of equal frames none is more alike than the first and the last
    are, and the third between is never put out. So four frames of each group stay, frames 3 and 8 go, and r' = 0.25.
    Grouped once more the eight are the frames 0, 1, 2, 4, 5 and 6, 7, 9.
    """
    frame = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    attention = torch.arange(10.0).expand(10, 10) / 45
    pruned = EarlyTom(retention_ratio=0.2).prune(frame.expand(10, 10, 6), attention)
    kept = {frame: (pruned.indices[pruned.indices // 10 == frame] % 10).tolist() for frame in range(10)}
    # At the ends of groups the ceil(10 * 0.25) = 3 highest; between them the last of round(2.5) = 2 runs of five.
    ends, between = [7, 8, 9], [4, 9]
    assert kept == {0: ends, 1: between, 2: between, 3: [], 4: between, 5: ends, 6: ends, 7: between, 8: [], 9: ends}
    assert pruned.segment_sizes.tolist() == [6, 4]


def test_what_a_group_puts_out_by_hand():
    """Of two frames that are more alike than the next two, and than the first and the last: one, the more of the first
    the more alike they are. The others as they are, but for the one before the last.
    """
    alike = torch.full((6, 6), 0.5)
    for frame, cosine in enumerate((0.9, 0.8, 0.6, 0.7, 0.9)):
        alike[frame, frame + 1] = cosine
    (first, merged, alone, last) = pairs(alike, 0, 5)
    assert (first, alone, last) == ((0, 0, 1.0), (3, 3, 1.0), (5, 5, 1.0))
    assert merged[:2] == (1, 2) and merged[2] == pytest.approx(0.8 / (0.8 + 0.6))


def test_tokens_dropped_in_the_language_model():
    """Before one layer, or nowhere: of 0.2 of the tokens what llm_drop_ratio leaves, merged one after the other."""
    inside = EarlyTom(retention_ratio=0.2, pruned_layer=18, llm_drop_ratio=0.25).in_llm(28)
    assert (inside.layer, inside.retention, inside.merging) == (18, 0.75, "sequential")
    assert EarlyTom(retention_ratio=0.2).in_llm(28) is None


def test_layers_at_the_same_depth():
    assert EarlyTom().tower_layers(26) == [6, 21, 23]
    assert EarlyTom().tower_layers(3) == [0, 2]
    assert EarlyTom().tower_layers(1) == [0]
    assert EarlyTom(prune_layers=(1, 2)).tower_layers(3) == [1, 2]


@pytest.mark.parametrize("settings, message", [
    ({"prune_layers": (3, 2)}, "EarlyTom.prune_layers"),
    ({"tower_reuse": "pixels"}, "merges frames in the vision tower itself"),
    ({"llm_drop_ratio": 1.0}, "EarlyTom.llm_drop_ratio"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EarlyTom(**settings)


def test_layers_that_a_tower_lacks_are_refused():
    with pytest.raises(ValueError, match="each from 0 to 2"):
        EarlyTom(prune_layers=(1, 3)).tower_layers(3)
    with pytest.raises(ValueError, match="at least one"):
        EarlyTom(prune_layers=()).tower_layers(3)
