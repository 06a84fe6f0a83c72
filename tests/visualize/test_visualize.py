"""visualize() on the shipped model and a shipped video: what is drawn is what a run keeps; and what it refuses."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tango import Tango
from tango.inference.chat import Chat
from tango.inference.checkpoints import load
from tango.inference.video import read_video
from tango.pruners import REGISTRY, TopK
from tango.pruners.trace import CONTEXT, SALIENT
from tango.visualize import visualize
from tango.visualize.runs import capture, label, seen, with_ratios

ROOT = Path(__file__).parents[2]
VIDEO = ROOT / "data" / "motionqa" / "videos" / "0.mp4"


@pytest.fixture(scope="module")
def checkpoint():
    return load(str(ROOT / "checkpoints" / "tango-tiny"))


def test_a_picture_shows_what_the_model_sees(checkpoint):
    pruners = with_ratios([Tango(sink_tokens=(3,)), "random"], [0.1, 0.2])
    picture = capture(checkpoint, VIDEO, pruners, 6, "What colour is the ring?")
    assert picture.frames.shape[0] == len(picture.times) == 6 and picture.grid == (8, 8)
    assert picture.ratios == (0.1, 0.2) and picture.unpruned is not None
    for row, methods in zip(picture.panels, pruners, strict=True):
        for panel, method in zip(row, methods, strict=True):
            content = [{"type": "video", "video": str(VIDEO)}, {"type": "text", "text": "What colour is the ring?"}]
            with Chat(checkpoint, method, max_frames=6).session() as chat:
                answer = chat.generate([{"role": "user", "content": content}], {"max_new_tokens": 64}, "x")
                (record,) = chat._pruned.videos
            assert panel.ratio == method.retention_ratio
            assert panel.answer == answer.response
            assert np.flatnonzero(panel.roles).tolist() == sorted(record.indices.tolist())
            assert panel.after == record.tokens_after and panel.segments == tuple(record.segment_sizes)
            assert set(panel.joined[panel.joined >= 0].tolist()) == set(record.indices.tolist())
            assert (panel.heat is None) == (method.name == "random")
    tango = picture.panels[0][0]
    assert {SALIENT, CONTEXT} <= set(tango.roles.tolist())
    assert not tango.heat.reshape(6, 64)[:, 3].any()  # a sink is as the method sees it
    assert tango.heat.max() == 255


def test_every_method_can_be_drawn(checkpoint):
    picture = capture(checkpoint, VIDEO, with_ratios(sorted(set(REGISTRY) - {"fastv"}), [0.3]), 4)
    assert len(picture.panels) == len(REGISTRY) - 1
    assert all(row[0].roles.any() and row[0].answer is None for row in picture.panels)
    fastv = capture(checkpoint, VIDEO, with_ratios(["fastv"], [0.8]), 4).panels[0][0]
    assert fastv.roles.all() and fastv.in_llm < fastv.after and "in the last layers" in fastv.count


def test_files(checkpoint, tmp_path):
    steps = []
    methods = ["tango", Tango(selection="topk"), TopK(scope="video")]
    pictures = visualize(
        VIDEO, tmp_path / "new" / "folder", checkpoint, methods, [0.2], 3, progress=lambda *step: steps.append(step)
    )
    assert pictures.page == tmp_path / "new" / "folder" / "index.html"
    assert pictures.sheets == (tmp_path / "new" / "folder" / "sheet.png",)
    assert all(path.stat().st_size > 1000 for path in (pictures.page, *pictures.sheets))
    assert [done for _, done, _ in steps] == list(range(5)) and {total for _, _, total in steps} == {5}
    assert steps[1][0] == "tango selection=topk at 0.2"


def test_qwens_pairs_of_frames(checkpoint, monkeypatch):
    """Where a frame of tokens is made of two sampled frames, the first of them is shown, at the time of the pair."""
    clip = read_video(VIDEO, 5)
    monkeypatch.setattr("tango.visualize.runs.read_video", lambda video, frames: clip)
    picture = capture(checkpoint, VIDEO, with_ratios(["uniform"], [0.5]), 3)
    assert np.array_equal(picture.frames, clip.frames[[0, 2, 4]])
    assert len(picture.times) == 3


@pytest.mark.parametrize("vision, rows, shape", [
    ({"image_size": 384, "patch_size": 14}, 13, (364, 182)),  # LLaVA-Video: 26 of 27 patches, which cover 378 pixels
    ({"image_size": 384, "patch_size": 14}, 14, (378, 189)),  # LLaVA-OneVision: all 27
    ({"image_size": 128, "patch_size": 8}, 8, (384, 192)),  # tango-tiny
    ({"patch_size": 14}, 13, (384, 192)),  # Qwen: frames of any size
])  # fmt: skip
def test_frames_are_shown_as_far_as_tokens_stand_for_them(vision, rows, shape):
    frames = np.arange(384)[None, :, None, None] + np.zeros((2, 384, 192, 3), int)
    shown = seen(frames, rows, SimpleNamespace(**vision))
    assert shown.shape == (2, *shape, 3) and np.array_equal(shown[0, :, 0, 0], np.arange(shape[0]))


def test_labels():
    assert label(Tango(retention_ratio=0.3)) == "tango"
    assert label(Tango(selection="topk", context_ratio=0.2)) == "tango context_ratio=0.2 selection=topk"


@pytest.mark.parametrize("changes, error, message", [
    ({"methods": []}, ValueError, "at least one method"),
    ({"ratios": []}, ValueError, "at least one method and one retention ratio"),
    ({"methods": ["tengo"]}, ValueError, "'tengo'; use one of .*tango"),
    ({"methods": ["tango", "tango"]}, ValueError, "'tango' is there twice"),
    ({"ratios": [0.1, 0.1]}, ValueError, "is there twice"),
    ({"ratios": [0.1, 1.5]}, ValueError, r"retention_ratio = 1.5: expected .*\(0, 1\]"),
    ({"frames": 0}, ValueError, "frames = 0"),
    ({"video": "no/such.mp4"}, FileNotFoundError, "no/such.mp4"),
    ({"video": __file__}, ValueError, "test_visualize.py"),
    ({"output": __file__}, NotADirectoryError, "name a folder"),
    ({"model": "no-such-folder"}, ValueError, "no such folder"),
])  # fmt: skip
def test_bad_input_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, changes, error, message):
    def load(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("tango.visualize.load", load)
    arguments = {"video": VIDEO, "output": tmp_path / "out", "model": str(ROOT / "checkpoints" / "tango-tiny")}
    with pytest.raises(error, match=message) as raised:
        visualize(**arguments | changes)
    assert not isinstance(raised.value, AssertionError)
    assert not (tmp_path / "out").exists()


def test_a_method_that_does_not_fit_the_model_is_named(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"tango pruned_layer=99 at a ratio of 0.2: .*99"):
        visualize(VIDEO, tmp_path, checkpoint, [Tango(pruned_layer=99)], [0.2], 2)
    assert torch.is_grad_enabled()
