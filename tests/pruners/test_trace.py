"""Traces: prune() stays what it is, and what they tell of salient, merged and static tokens is what was computed."""

import pytest
import torch
from golden_cases import cases, read
from videos import made_up, prune

from tango import Tango
from tango.pruners import REGISTRY
from tango.pruners.trace import CONTEXT, GONE, KEPT, SALIENT, _by_token, traced

VARIANTS = [
    {},
    {"placement": "published"},
    {"context_ratio": 0.0},
    {"context_ratio": 1.0},
    {"merging": "cosine", "selection": "topk"},
    {"segmentation": "none", "anchor_weight": 0.2},
    {"segmentation": "fastvid", "memory_limit": 1e-4},
    {"exact_budget": True},
    {"exact_budget": True, "retention_ratio": 0.9},
    {"static_threshold": 0.2, "retention_ratio": 0.5},
]


def members_of(trace, index):
    """The tokens that a kept token stands for."""
    return (trace.joined == index).any(1).nonzero()[:, 0]


def check(method, features, saliency, grid, times):
    """The trace accounts for every kept token: its features follow from the tokens that the trace says it holds."""
    frames, count, dim = features.shape
    plain = method.prune(features, saliency, grid, times)
    with traced() as traces:
        pruned = method.prune(features, saliency, grid, times)
    (trace,) = traces
    for a, b in zip((plain.indices, plain.features, plain.segment_sizes),
                    (pruned.indices, pruned.features, pruned.segment_sizes), strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert trace.pruned is pruned and torch.equal(trace.video.saliency, saliency) and trace.pruner is method
    kept = torch.zeros(frames * count, dtype=torch.bool)
    kept[pruned.indices] = True
    assert torch.equal(trace.roles != GONE, kept)
    table = features.reshape(-1, dim).double()
    segment = torch.repeat_interleave(torch.arange(len(pruned.segment_sizes)), pruned.segment_sizes)
    segment_of = segment.repeat_interleave(count)
    starts = pruned.segment_sizes.cumsum(0) - pruned.segment_sizes
    alike = torch.cosine_similarity(features[:-1].double(), features[1:].double(), dim=-1) > method.static_threshold
    for start, size in zip(starts.tolist(), pruned.segment_sizes.tolist(), strict=True):
        still = alike[start : start + size - 1].all(0) & (size > 1)
        assert torch.equal(trace.static.view(frames, count)[start : start + size], still.expand(size, -1))
    seen = 0
    for row, index in zip(pruned.features.double(), pruned.indices.tolist(), strict=True):
        role, size = int(trace.roles[index]), int(pruned.segment_sizes[segment_of[index]])
        members = members_of(trace, index)
        seen += len(members)
        if role == KEPT:  # brought back by an exact budget, by itself, whatever it was merged into
            assert method.exact_budget
            torch.testing.assert_close(row, table[index])
            continue
        assert index in members or method.placement == "published"
        assert bool((segment_of[members] == segment_of[index]).all())
        assert bool((trace.static[members] == trace.static[index]).all())
        anchor = table[index]
        copies = 1
        if trace.static[index]:
            copies = size
            anchor = table[index % count :: count][segment == segment_of[index]].mean(0)
        sources, rest = divmod(len(members), copies)
        assert rest == 0
        if role == SALIENT:
            assert sources == 1
            torch.testing.assert_close(row, anchor, atol=1e-5, rtol=1e-5)
        elif method.placement == "anchor":
            weight = max(1 / sources, method.anchor_weight)
            expected = weight * anchor + (1 - weight) * table[members].mean(0)
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)
    assert seen == int((trace.joined >= 0).sum())
    if not method.exact_budget and method.context_ratio > 0 and bool((trace.roles == CONTEXT).any()):
        assert not bool((trace.roles == KEPT).any())
    return trace


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
def test_members_make_the_golden_tokens(path):
    tensors, known, grid = read(path)
    names = ("retention_ratio", "context_ratio", "similarity_threshold", "static_threshold", "segmentation")
    method = Tango(**{name: known[name] for name in names}, anchor_weight=known["anchor_weight"])
    check(method, tensors["features"], tensors["saliency"], grid, tensors["timestamps"])


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("ratio", [0.12, 0.3])
def test_members_with_every_setting(settings, ratio):
    method = Tango(**{"retention_ratio": ratio} | settings)
    trace = check(method, *made_up(7, (6, 8), 24, seed=3, noise=0.2))
    if 0 < method.context_ratio < 1:
        assert {SALIENT, CONTEXT} <= set(trace.roles.tolist())


def test_where_the_published_code_puts_a_merged_token_its_members_go_too():
    video = made_up(6, (6, 6), 24, seed=1, noise=0.2)
    features, table = [], video[0].reshape(-1, 24)
    for placement in ("anchor", "published"):
        with traced() as traces:
            Tango(retention_ratio=0.2, placement=placement).prune(*video)
        trace = traces[0]
        groups = {}
        for index, row in zip(trace.pruned.indices.tolist(), trace.pruned.features, strict=True):
            groups[tuple(members_of(trace, index).tolist())] = row
        features.append(groups)
    assert features[0].keys() == features[1].keys()
    for members, row in features[0].items():
        assert torch.equal(row, features[1][members])
    assert len(table) > len(features[0])


# What a kept token's features are made of, with settings that reach every way in which a method merges.
EVERY_METHOD = [(name, {}) for name in sorted(REGISTRY) if name != "tango"] + [
    ("visionzip", {"dominant_ratio": 0.0}),
    ("visionzip", {"dominant_ratio": 1.0}),
    ("visionzip", {"exact_budget": True}),
    ("fastvid", {"min_segments": 1, "similarity_threshold": -1.0, "anchor_interval": 2}),
    ("fastvid", {"anchor_interval": 1, "context_ratio": 1.0}),
    ("fastvid", {"exact_budget": True, "retention_ratio": 0.6, "min_segments": 2}),
    ("holitom", {"similarity_threshold": 0.3, "anchor_weight": 0.2}),
    ("holitom", {"similarity_threshold": 0.3, "exact_budget": True, "retention_ratio": 0.8}),
    ("flashvid", {"min_segments": 2, "segment_threshold": 0.0, "temporal_threshold": 0.3}),
    ("flashvid", {"min_segments": 1, "segment_threshold": -1.0, "tree_mean": "exact", "alpha": 0.3}),
    ("flashvid", {"alpha": 0.5, "exact_budget": True}),
    ("flashvid", {"alpha": 0.9, "exact_budget": True, "retention_ratio": 0.9}),
    ("flashvid", {"alpha": 0.0, "retention_ratio": 0.05}),
    ("prunevid", {"tau": 0.3, "merge_above": 4}),
    ("prunevid", {"tau": 0.3, "order": "ascending", "exact_budget": True, "retention_ratio": 0.9}),
    ("prunevid", {"cluster_ratio": 1.0, "tau": 0.3}),
    ("stop_visionzip", {"dominant_ratio": 0.3, "exact_budget": True}),
    ("stop_fastvid", {"min_segments": 1, "similarity_threshold": -1.0, "anchor_interval": 2}),
    ("stop_holitom", {"similarity_threshold": 0.3, "static_threshold": 0.3, "exact_budget": True}),
    ("topk", {"scope": "video"}),
    ("tango", {}),
    ("tango", {"static_threshold": 0.2, "exact_budget": True}),
]


@pytest.mark.parametrize("name, settings", EVERY_METHOD, ids=str)
def test_every_kept_token_is_made_of_the_tokens_that_are_told(name, settings):
    """Tokens in more dimensions than there are tokens are independent: only one sum of them makes a kept one."""
    video, base = made_up(6, (4, 5), 128, seed=4, noise=0.2), name.removeprefix("stop_")
    method = REGISTRY[name](**{"retention_ratio": 0.3} | settings)
    plain = prune(method, video)
    with traced() as traces:
        pruned = prune(method, video)
    (trace,) = traces
    assert torch.equal(plain.indices, pruned.indices) and torch.equal(plain.features, pruned.features)
    assert set(trace.roles.nonzero()[:, 0].tolist()) == set(pruned.indices.tolist())
    table = video[0].reshape(-1, 128).double()
    shares = torch.linalg.lstsq(table.T, pruned.features.double().T).solution.T  # of each token in each kept one
    torch.testing.assert_close(shares @ table, pruned.features.double(), atol=1e-5, rtol=1e-5)
    twice = torch.bincount(pruned.indices, minlength=len(table)) > 1
    seen = set()
    for index, share in zip(pruned.indices.tolist(), shares, strict=True):
        made_of = (share.abs() > 1e-3).nonzero()[:, 0].tolist()
        role, first = int(trace.roles[index]), index not in seen
        seen.add(index)
        if role == KEPT or (twice[index] and first):  # kept twice: as it is, then as the place of others
            assert made_of == [index] and index in members_of(trace, index)
        else:
            assert made_of == members_of(trace, index).tolist()
        assert bool((share[made_of] > 0).all())
        if role == SALIENT and first and not trace.static[index]:
            assert made_of == [index]
        if base == "visionzip" and role == CONTEXT:
            assert abs(share.sum() - min(2, len(made_of))) < 1e-3
        elif name != "flashvid" or method.tree_mean == "exact":
            assert abs(share.sum() - 1) < 1e-3
        if name == "prunevid":
            assert bool(((share[made_of] - 1 / len(made_of)).abs() < 1e-4).all())
    known = (trace.joined >= 0).all(1)
    assert base in ("fastvid", "flashvid") or trace.joined.shape[1] == 1 or method.exact_budget
    if base in ("visionzip", "prunevid") and not method.exact_budget and settings.get("dominant_ratio") != 1:
        assert bool(known.all())  # nothing is dropped: every token is part of a kept one


@pytest.mark.parametrize("name", ["visionzip", "fastvid", "holitom", "flashvid", "prunevid", "tango", "stop_visionzip",
                                  "stop_fastvid", "stop_holitom"])  # fmt: skip
def test_the_settings_above_reach_every_kind_of_token(name):
    roles, several, still = set(), False, False
    for settings in (settings for other, settings in EVERY_METHOD if other == name):
        with traced() as traces:
            prune(REGISTRY[name](**{"retention_ratio": 0.3} | settings), made_up(6, (4, 5), 128, seed=4, noise=0.2))
        roles |= set(traces[0].roles.tolist())
        several |= traces[0].joined.shape[1] > 1
        still |= bool(traces[0].static.any())
    assert {GONE, CONTEXT} <= roles and (SALIENT in roles) == (name != "prunevid")
    base = name.removeprefix("stop_")
    assert still == (base in ("holitom", "prunevid", "tango"))
    assert several or base not in ("fastvid", "flashvid")


def test_a_ratio_of_one_and_nobody_asking():
    video = made_up(3, (4, 4), 24)
    with traced() as outer:
        with traced() as inner:
            Tango(retention_ratio=1).prune(*video)
        assert len(inner) == 1 and not outer
        Tango(retention_ratio=0.5).prune(*video)
    assert len(outer) == 1
    assert set(inner[0].roles.tolist()) == {KEPT} and inner[0].joined.flatten().tolist() == list(range(3 * 16))
    Tango(retention_ratio=0.5).prune(*video)
    assert len(outer) == 1


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_what_a_token_joins_is_listed_nearest_first(count):
    """The nearest in the order of the prompt, the lower index of two as near; each once."""
    pairs = torch.randint(60, (count, 2), generator=torch.Generator().manual_seed(count))
    listed = _by_token(torch.cat([pairs, torch.tensor([[7, 7]])]), 60).tolist()
    for first, into in enumerate(listed):
        joined = {second for own, second in pairs.tolist() if own == first} | ({7} if first == 7 else set())
        expected = sorted(joined, key=lambda second: (abs(second - first), second))
        assert into == expected + [-1] * (len(into) - len(expected))
