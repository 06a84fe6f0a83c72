"""Pruning inside the language model on plain tensors: golden vectors, plain loops, shares and their limits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tango import Tango
from tango.pruners.fastv import FastV
from tango.pruners.in_llm import LayerPruning, attention_row, average_ratio, prefill_ratio, ranks

CASES = sorted((Path(__file__).parents[1] / "golden" / "in_llm").glob("case_*.safetensors"))


def test_all_cases_are_here():
    assert len(CASES) == 4


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parameters = json.loads(file.metadata()["parameters"])
    hidden, start, length = tensors["hidden_states"][0], int(tensors["start"]), int(tensors["length"])
    scores = tensors["attention_last_row"].mean(0)
    span = slice(start, start + length)
    for merging, expected in (("mean", "output_hidden_states"), ("drop", "output_hidden_states_fastv")):
        settings = LayerPruning(1, parameters["p"], merging=merging, anchor_share=parameters["anchor_share"])
        kept = settings.keep(scores[span])
        assert len(kept) == parameters["num_video_kept"]
        text = torch.arange(len(hidden))
        places = torch.cat((text[:start], kept + start, text[start + length :]))
        assert torch.equal(places, tensors["kept_positions"])
        output = torch.cat((hidden[:start], settings.merge(hidden[span], kept), hidden[start + length :]))
        torch.testing.assert_close(output, tensors[expected][0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merging", ["mean", "sequential"])
def test_merging_one_token_after_another(merging, dtype):
    torch.manual_seed(0)
    hidden = torch.randn(40, 6).to(dtype)
    hidden[7] = hidden[12] = hidden[30]  # as similar to one kept token as to another
    hidden[3] = 0
    settings = LayerPruning(1, 0.2, merging=merging, anchor_share=0.7)
    kept = torch.tensor([2, 7, 12, 13, 20, 21, 33, 39])
    values = hidden.float()
    expected = values[kept].clone()
    joined = [[] for _ in kept]
    for place in range(40):
        if place not in kept:
            similar = [torch.cosine_similarity(values[place], values[other], 0).item() for other in kept]
            joined[similar.index(max(similar))].append(place)
    assert 30 in joined[1] and 3 in joined[0] and not all(joined)
    for target, members in enumerate(joined):
        if merging == "mean" and members:
            mean = (expected[target] + sum(values[member] for member in members)) / (1 + len(members))
            expected[target] = 0.7 * expected[target] + 0.3 * mean
        for member in members if merging == "sequential" else []:
            expected[target] = (expected[target] + values[member]) / 2
    merged = settings.merge(hidden, kept)
    assert merged.dtype == dtype
    torch.testing.assert_close(merged, expected.to(dtype))
    alone = [target for target, members in enumerate(joined) if not members]
    assert torch.equal(merged[alone], hidden[kept[alone]])
    whole = torch.arange(40)
    assert torch.equal(settings.merge(hidden, whole), hidden)


def test_ranks():
    groups = torch.tensor([2, 0, 2, 2, 0, 3])
    assert ranks(groups, torch.bincount(groups, minlength=5)).tolist() == [0, 0, 1, 2, 1, 0]


def test_ties_and_counts():
    assert LayerPruning(1, 0.5).keep(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0])).tolist() == [0, 1, 3]
    for tokens, share, rounding, count in (
        (5, 0.5, "half_even", 2), (7, 0.5, "half_even", 4), (5, 0.5, "up", 3), (3, 0.01, "half_even", 1),
        (3, 0.01, "up", 1), (1, 0.5, "half_even", 1), (6, 1.0, "up", 6), (10, 0.3, "up", 3),
    ):  # fmt: skip
        assert LayerPruning(1, share, rounding=rounding).count(tokens) == count


def test_attention_row():
    """Against a full causal map of repeated heads, of which it is one row."""
    torch.manual_seed(0)
    query, keys = torch.randn(2, 6, 11, 4), torch.randn(2, 3, 11, 4)
    padded = torch.tensor([0, 3])
    scores = query.double() @ keys.double().repeat_interleave(2, 1).transpose(2, 3) * 0.3
    scores = scores.masked_fill(torch.ones(11, 11).triu(1).bool(), float("-inf"))
    scores[1, :, :, :3] = float("-inf")
    place = 8
    visible = (torch.arange(11) >= padded[:, None]) & (torch.arange(11) <= place)
    row = attention_row(query[:, :, place], keys, visible, 0.3)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, scores[:, :, place].softmax(-1).float())


def test_shares():
    """The paper's LLaVA-Video: 18 of 28 layers see r_pre, 10 see half of it."""
    assert prefill_ratio(0.1, 28, 18, 0.5) == pytest.approx(0.1 * 28 / 23)
    assert prefill_ratio(0.9, 28, 18, 0.5) == 1
    for ratio in (0.1, 0.15, 0.2):
        before = prefill_ratio(ratio, 28, 18, 0.5)
        assert average_ratio(before, before / 2, 28, 18) == pytest.approx(ratio)
    for ratio, layer in ((0.1, 2), (0.5, 2), (0.2, 3), (0.99, 27)):
        inside = FastV(retention_ratio=ratio, pruned_layer=layer).in_llm(28)
        assert inside.layer == layer and inside.merging == "drop"
        assert average_ratio(1, inside.retention, 28, layer) == pytest.approx(ratio)
    assert FastV(retention_ratio=15 / 28).in_llm(28).retention == pytest.approx(0.5)  # the paper's K = 2, R = 50 %


@pytest.mark.parametrize("ratio, layer, least", [(0.07, 2, "0.071"), (2 / 28, 2, "0.071"), (0.1, 3, "0.107")])
def test_fastv_cannot_keep_less_than_its_first_layers_see(ratio, layer, least):
    with pytest.raises(ValueError, match=rf"FastV.retention_ratio = {ratio}: .* only ratios above {least}"):
        FastV(retention_ratio=ratio, pruned_layer=layer).in_llm(28)


def test_fastv_lets_the_whole_video_in():
    features = torch.randn(3, 4, 6)
    pruner = FastV(retention_ratio=0.3)
    pruned = pruner.prune(features)
    assert torch.equal(pruned.indices, torch.arange(12))
    assert torch.equal(pruned.features, features.flatten(0, 1))
    assert pruner.needs == frozenset() and pruner.before_llm(28) is pruner
    with pytest.raises(ValueError, match="features must be finite"):
        pruner.prune(features * float("nan"))


def test_tango_spends_its_budget_over_all_layers():
    tango = Tango(retention_ratio=0.1, pruned_layer=18)
    assert tango.in_llm(28) == LayerPruning(18, 0.5, merging="mean", anchor_share=0.6)
    before = tango.before_llm(28)
    assert before.retention_ratio == pytest.approx(0.1 * 28 / 23)
    assert before.similarity_threshold == 0.65  # that of a ratio of 0.1, not of 0.12
    assert Tango(retention_ratio=0.15, pruned_layer=18).before_llm(28).similarity_threshold == 0.8
    assert Tango(similarity_threshold=0.7, pruned_layer=18).before_llm(28).similarity_threshold == 0.7
    assert tango.retention_ratio == 0.1 and tango.similarity_threshold is None


@pytest.mark.parametrize("settings", [{}, {"pruned_layer": 18, "llm_retention": 1.0},
                                      {"pruned_layer": 18, "retention_ratio": 1.0}])  # fmt: skip
def test_nothing_inside(settings):
    tango = Tango(**settings)
    assert tango.in_llm(28) is None and tango.before_llm(28) is tango


@pytest.mark.parametrize("layer", [28, 40])
@pytest.mark.parametrize("method", [Tango, FastV])
def test_the_layer_must_exist(method, layer):
    with pytest.raises(ValueError, match=rf"{method.__name__}.pruned_layer = {layer}: .* layers 1 to 27"):
        method(retention_ratio=1.0, pruned_layer=layer).in_llm(28)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tango(pruned_layer=0), r"Tango.pruned_layer = 0: expected an integer of at least 1"),
        (lambda: Tango(pruned_layer=1.5), r"Tango.pruned_layer = 1.5"),
        (lambda: Tango(llm_retention=0.0), r"Tango.llm_retention = 0.0"),
        (lambda: FastV(pruned_layer=0), r"FastV.pruned_layer = 0"),
        (lambda: FastV(pruned_layer=None), r"FastV.pruned_layer = None"),
        (lambda: LayerPruning(0, 0.5), r"layer = 0: expected an integer of at least 1"),
        (lambda: LayerPruning(1, 0.0), r"retention = 0.0: expected a number in \(0, 1\]"),
        (lambda: LayerPruning(1, 0.5, anchor_share=1.1), r"anchor_share = 1.1"),
        (lambda: LayerPruning(1, 0.5, merging="sum"), r"merging = 'sum': expected one of drop, mean, sequential"),
        (lambda: LayerPruning(1, 0.5, rounding="down"), r"rounding = 'down': expected one of half_even, up"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
