"""Tango's parts exchanged one by one: each setting against the plain oracle, and the shipped files of settings."""

from pathlib import Path

import pytest
import torch
import yaml
from oracle import Oracle
from videos import made_up

from tango import Tango
from tango.runs.settings import from_environment

FILES = sorted(Path(__file__).parents[1].glob("configs/ablations/*.yaml"))
PARTS = ("selection", "merging", "segmentation")


@pytest.mark.parametrize("segmentation", ["holitom", "fastvid", "none"])
@pytest.mark.parametrize("merging", ["st_rope", "cosine"])
@pytest.mark.parametrize("selection", ["diversity", "topk"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_oracle(seed, selection, merging, segmentation):
    features, saliency, grid, times = made_up(1 + 3 * seed, (5, 6), 24, seed, noise=0.3)
    settings = {
        "retention_ratio": (0.1, 0.2, 0.3, 0.15)[seed],
        "selection": selection,
        "merging": merging,
        "segmentation": segmentation,
    }
    pruned = Tango(**settings).prune(features, saliency, grid, times)
    indices, values, sizes = Oracle(**settings).prune(features, saliency, grid, times)
    assert pruned.segment_sizes.tolist() == list(sizes)
    assert torch.equal(pruned.indices, indices)
    torch.testing.assert_close(pruned.features, values, rtol=1e-4, atol=1e-5)


def kept(video, **settings):
    return Tango(0.25, **settings).prune(*video)


def test_each_part_makes_a_difference():
    video = made_up(10, (6, 7), 24, seed=3, noise=0.4)
    full = kept(video)
    for change in ({"selection": "topk"}, {"merging": "cosine"}, {"segmentation": "none"}, {"segmentation": "fastvid"}):
        changed = kept(video, **change)
        assert changed.features.shape != full.features.shape or not torch.equal(changed.features, full.features)


def test_topk_takes_the_most_salient_of_a_frame():
    features, saliency, grid, times = made_up(1, (5, 6), 24, seed=1)
    pruned = Tango(0.2, context_ratio=0.0, selection="topk").prune(features, saliency, grid, times)
    assert pruned.indices.tolist() == sorted(saliency[0].topk(6).indices.tolist())
    assert torch.equal(pruned.features, features[0, pruned.indices])


def test_cosine_merging_does_not_know_where_tokens_are():
    """With all tokens merged, a video played at other times gives the same tokens."""
    features, saliency, grid, times = made_up(6, (5, 6), 24, seed=1, noise=0.5)
    plain = {"context_ratio": 1.0, "merging": "cosine", "segmentation": "none"}
    first, later = (Tango(0.2, **plain).prune(features, saliency, grid, t) for t in (times, 7 * times))
    assert torch.equal(first.indices, later.indices) and torch.equal(first.features, later.features)
    plain["merging"] = "st_rope"
    first, later = (Tango(0.2, **plain).prune(features, saliency, grid, t) for t in (times, 7 * times))
    assert not torch.equal(first.features, later.features)


def test_no_segments_is_one_segment():
    video = made_up(9, (3, 4), 12, scenes=3)
    assert kept(video, segmentation="none").segment_sizes.tolist() == [9]


@pytest.mark.parametrize("field", PARTS)
def test_settings_are_checked(field):
    with pytest.raises(ValueError, match=rf"Tango\.{field} = 'other': expected one of"):
        Tango(**{field: "other"})


def test_the_whole_grid_and_each_single_change_are_shipped():
    stems = {file.stem for file in FILES}
    grid = {
        f"{selection}-{merging}-{segmentation}"
        for selection in ("diversity", "topk")
        for merging in ("st_rope", "cosine")
        for segmentation in ("holitom", "fastvid", "none")
    }
    assert grid <= stems
    changed = {stem.rsplit("-", 1)[0] for stem in stems - grid}
    assert changed == {
        "anchor_weight", "context_ratio", "expansion", "keep_positions", "num_neighbors", "placement", "space_base",
        "static_threshold", "time_base",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_changes_what_its_name_says(file):
    pruner = from_environment({"WRAPPER": "tango", "TANGO_CONFIG": str(file)}).pruner
    settings, defaults = pruner.settings(), Tango(saliency="pooling_head").settings()
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    parts = file.stem.split("-")
    if len(parts) == 3:
        assert tuple(settings[name] for name in PARTS) == tuple(parts)
        assert set(changed) <= set(PARTS)
    else:
        assert {name: str(value) for name, value in changed.items()} == {parts[0]: parts[1]}
    assert yaml.safe_load(file.read_text())["retention_ratio"] == 0.1
