"""`tower_reuse="pixels"` of a stream: frames that come one at a time are encoded as those of the finished clip."""

import numpy as np
import pytest
import torch
from streams import QUESTION, live, scenes, shipped, watch
from test_same_as_generate import by_generate
from tiny import save_qwen

from tango.inference.checkpoints import load
from tango.models import attach, llava_onevision, packed, reuse
from tango.pruners import EarlyTom, Tango, Uniform
from tango.pruners.video import VideoTokens

REUSING = {"retention_ratio": 0.5, "tower_reuse": "pixels", "tower_reuse_layers": 1.0}


def moving(frames, side=128, seed=0):
    """A still picture in which some squares change, with a cut in the middle and frames in which nothing does."""
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    for frame in range(1, frames):
        if frame == frames // 2:
            continue
        fresh = pictures[frame].copy()
        pictures[frame] = pictures[frame - 1]
        for _ in range(0 if frame % 5 == 3 else 3):
            top, left = 16 * generator.integers(0, side // 16, 2)
            pictures[frame, top : top + 16, left : left + 16] = fresh[top : top + 16, left : left + 16]
    return pictures


def of_the_clip(checkpoint, pruner, pictures, computed=True):
    """What the tower says of the finished clip: features of its frames, and which share of them was computed."""
    options = {} if checkpoint is shipped() else {"do_resize": False}  # Qwen's frames are of the right size
    inputs = checkpoint.processor.video_processor(
        videos=[pictures], do_sample_frames=False, return_tensors="pt", **options
    )
    with torch.inference_mode(), attach(checkpoint.model, pruner):
        (parts,) = checkpoint.model.generate.seam.family.encode(inputs)
    return parts["features"], parts["computed"] if computed else None


def check(found, units, wanted):
    """Frames of a session, none of them closed, against those of the clip."""
    features, computed = wanted
    assert len(units) == len(features)
    assert torch.equal(torch.cat([unit.parts["computed"] for unit in units]), computed)
    torch.testing.assert_close(torch.cat([unit.parts["features"] for unit in units]), features, atol=2e-5, rtol=1e-4)
    assert not found.problems


@pytest.mark.parametrize(("interval", "call"), [(None, 64), (5, 8), (1, 64)])
def test_each_frame_is_that_of_the_finished_clip(monkeypatch, interval, call):
    """Over refreshes, a cut, frames without any change, and the frames that the tower takes at once from a clip."""
    for module in (llava_onevision, reuse):
        monkeypatch.setattr(module, "FRAMES_PER_CALL", call)
    pruner, pictures = Uniform(**REUSING, tower_reuse_interval=interval), moving(21)
    wanted = of_the_clip(shipped(), pruner, pictures)
    assert (wanted[1].min() < 0.6) == (interval != 1)
    with live(pruner=pruner, budget=1 << 14) as video:
        for number, picture in enumerate(pictures):
            video.add(picture, number, wait=True)
            if number in (6, 12):
                assert video.ask(QUESTION, 2).text()
        video.wait()
        check(video, video._holding.open, wanted)


@pytest.mark.parametrize("new", [False, True], ids=["qwen2.5", "qwen3"])
def test_qwen_also_where_a_question_saw_half_a_frame(monkeypatch, tmp_path, new):
    save_qwen(tmp_path, new=new, scale=6, pixels=128 * 128)
    checkpoint, pictures = load(str(tmp_path)), moving(22)
    pruner = Uniform(**REUSING, tower_reuse_interval=3)
    wanted = of_the_clip(checkpoint, pruner, pictures)
    patches = (128 // checkpoint.model.config.vision_config.patch_size) ** 2
    for module in (packed, reuse):  # from a clip the tower takes five frames at once
        monkeypatch.setattr(module, "PATCHES_PER_CALL", 5 * patches)
    taken = of_the_clip(checkpoint, pruner, pictures)
    assert not torch.equal(taken[1], wanted[1]) and taken[1].min() < 0.7
    with live(checkpoint, pruner, budget=1 << 14) as video:
        for number, picture in enumerate(pictures):
            video.add(picture, number, wait=True)
            if number in (4, 11):  # 4 and 11: with a frame of its own for the odd one, and without
                video.ask(QUESTION, 1).text()
        video.wait()
        check(video, video._holding.open, taken)


def test_answers_are_those_of_generate():
    pruner = Tango(retention_ratio=0.25, tower_reuse="pixels", tower_reuse_interval=5)
    pictures, times = scenes(3, 7)
    questions = [QUESTION, "Which letter flashes up?"]
    answers, record = by_generate(pruner, pictures, times, questions)
    assert record.tower_computed < 0.95
    with live(pruner=pruner) as video:
        watch(video, pictures, times)
        assert [video.ask(question, 8).text().strip() for question in questions] == [a.strip() for a in answers]


def test_a_frame_that_fails_leaves_nothing_behind():
    """It fails when half of the tower has seen it, and the stream goes on from the frame before."""
    pruner, pictures = Uniform(**REUSING), moving(9)
    wanted = of_the_clip(shipped(), pruner, np.delete(pictures, 5, 0))
    layers = shipped().model.model.vision_tower.encoder.layers
    with live(pruner=pruner, budget=1 << 14) as video:
        watch(video, pictures[:5], range(5))

        def fail(*_):
            raise OSError("no tower now")

        hook = layers[1].register_forward_pre_hook(fail)
        watch(video, pictures[5:6], [5])
        hook.remove()
        watch(video, pictures[6:], range(6, 9))
        assert len(video.problems) == 1 and "no tower now" in video.problems.pop()
        check(video, video._holding.open, wanted)


def test_a_prompt_of_its_own_meanwhile_is_another_video():
    pruner, pictures = Uniform(**REUSING), moving(12)
    wanted, other = of_the_clip(shipped(), pruner, pictures), moving(4, seed=1)
    alone = of_the_clip(shipped(), pruner, other)
    inputs = shipped().processor.video_processor(videos=[other], do_sample_frames=False, return_tensors="pt")
    with live(pruner=pruner, budget=1 << 14) as video:
        watch(video, pictures[:7], range(7))
        with torch.inference_mode(), video._seam.lock:
            (parts,) = video._seam.family.encode(inputs)
        watch(video, pictures[7:], range(7, 12))
        assert torch.equal(parts["features"], alone[0])
        check(video, video._holding.open, wanted)


def test_what_is_held_of_the_tower_is_one_frame():
    pictures, sizes = moving(40), []
    with live(pruner=Uniform(**REUSING), window=4) as video:
        for number, picture in enumerate(pictures):
            watch(video, [picture], [number])
            sizes.append(sum(state.nbytes for state in [*video._encoder.reused.states, video._encoder.reused.pixels]))
        config = shipped().model.config.vision_config
        depth = config.num_hidden_layers - 1
        patches = (config.image_size // config.patch_size) ** 2
        assert {*sizes} == {4 * patches * (3 * depth * config.hidden_size + 3 * config.patch_size**2)}
    assert not hasattr(video, "_encoder")


def test_settings_that_a_stream_cannot_have_are_refused(tmp_path):
    """None of them is taken and then not done."""
    with pytest.raises(ValueError, match="tower_reuse='stc' is for clips"), live(pruner=Uniform(tower_reuse="stc")):
        pass
    assert not hasattr(shipped().model.generate, "seam")
    save_qwen(tmp_path)
    checkpoint = load(str(tmp_path))
    with pytest.raises(ValueError, match="positions='transformers'"):
        live(checkpoint, Uniform(positions="transformers")).__enter__()
    assert not hasattr(checkpoint.model.generate, "seam")


def test_earlytom_merges_behind_the_tower():
    """The tower sees one frame at a time, so that nothing can be merged in it; docs/live.md says so."""
    pruner, pictures = EarlyTom(retention_ratio=0.5), moving(6)
    with live(pruner=pruner, budget=1 << 14) as video:
        watch(video, pictures, range(6))
        features = torch.cat([unit.parts["features"] for unit in video._holding.open])
        saliency = torch.cat([unit.parts["saliency"] for unit in video._holding.open])
        with video._seam.lock:
            tail = video._holding.newest(video._encoder.rest())
    whole, _ = of_the_clip(shipped(), Uniform(retention_ratio=0.5), pictures, computed=False)
    torch.testing.assert_close(features, whole, atol=2e-5, rtol=1e-4)
    wanted = pruner.prune_tokens(VideoTokens(features=features, saliency=saliency, grid=(8, 8), key="0"))
    assert torch.equal(64 * tail.kept.frames + tail.kept.places, wanted.indices)
