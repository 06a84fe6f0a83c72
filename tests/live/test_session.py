"""A session: what is bounded, what is reused, what it says to bad input, and the model after it."""

import copy
import math
import threading
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from streams import QUESTION, asked, clip, live, scenes, shipped, watch

from tango import Tango
from tango.inference.checkpoints import load
from tango.live import memory
from tango.live.layout import Qwen25, layout_of
from tango.pruners.fastv import FastV
from tango.pruners.fastvid import FastVID
from tango.pruners.uniform import Uniform

GREY = np.full((128, 128, 3), 90, np.uint8)


def random_pictures(count, size=(128, 128), seed=0):
    """As unlike each other as can be, so that every frame is a segment."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


# -- bounded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", sorted(memory.POLICIES))
def test_tokens_stay_within_the_budget_and_every_frame_is_in_the_history(policy):
    budget = 32
    with live(budget=budget, policy=policy, window=4) as video:
        for number, picture in enumerate(random_pictures(48)):
            video.add(picture, number, wait=True)
            if number % 8 == 7:
                answer = video.ask(QUESTION, 1)
                answer.text()
                text = len(video._layout.prompt(QUESTION)[0]) + len(video._layout.prompt(QUESTION)[1])
                assert answer.prompt <= budget + text + 1  # and a newline
                history = video.history
                assert sum(held.frames for held in history) == number + 1
                assert sum(held.tokens for held in history) <= budget and len(history) <= budget
                assert history[0].start == 0 and history[-1].end == number
                assert all(a.end < b.start for a, b in pairwise(history))
                assert all(held.tokens >= 1 for held in history if held.final is not None)
    assert any(held.joined > 1 for held in history)
    first, last = history[0], history[-2]
    if policy == "oldest":
        assert last.level == 0 and first.level > 0
    if policy == "fade":
        density = [held.tokens / held.frames for held in history[:-1]]
        assert density[0] < density[-1] / 3


def test_thinning_is_by_blocks_so_that_the_prefix_mostly_stays():
    with live(budget=96, window=4) as video:
        misses, before = 0, 0
        for number, picture in enumerate(random_pictures(50)):
            video.add(picture, number, wait=True)
            answer = video.ask(QUESTION, 1)
            answer.text()
            misses += answer.reused < before
            before = sum(held.tokens for held in video.history if held.final is not None)
        assert 0 < misses < 15


def test_a_second_question_prefills_its_text_and_what_is_open_alone():
    with live(pruner=Tango(retention_ratio=0.1, similarity_threshold=0.97)) as video:
        watch(video, *scenes(3, 7, 11))
        first = video.ask(QUESTION, 4)
        text = first.text()
        again = video.ask(QUESTION, 4)
        assert again.text() == text
        closed = sum(held.tokens for held in video.history if held.final is not None)
        assert (first.reused, again.reused) == (0, closed + len(video._layout.prompt(QUESTION)[0]))
        assert again.prompt == first.prompt
        # A prompt that was not begun from a cache gives the same answer.
        video._writer.forget()
        assert video.ask(QUESTION, 4).text() == text


def test_the_clock_of_a_long_stream_stays_within_the_models_positions():
    layout = object.__new__(Qwen25)
    layout.rate, layout.most, layout.scale = 2.0, 16384, 1.0
    for hours in (1, 2, 10, 1000):
        layout.fit(3600.0 * hours)
        assert int(layout.ticks(torch.tensor(3600.0 * hours))) <= 16385
    assert layout.scale < 1 / 256
    layout.scale = 1.0
    layout.fit(7200.0)
    assert layout.scale == 1.0


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_frames_that_cannot_be_are_refused_and_the_session_lives_on():
    with live() as video:
        with pytest.raises(ValueError, match="no frame has come yet"):
            video.ask(QUESTION)
        watch(video, [GREY], [5.0])
        for time, words in (
            (5.0, "times must rise"),
            (4, "times must rise"),
            (math.nan, "finite"),
            (math.inf, "finite"),
        ):
            with pytest.raises(ValueError, match=words):
                video.add(GREY, time)
        for frame in (GREY[..., 0], GREY.astype(float), GREY[:0], "picture", None, GREY[..., :2]):
            with pytest.raises(ValueError, match="a frame is"):
                video.add(frame, 6)
        for question in ("", "  ", None, 3):
            with pytest.raises(ValueError, match="a question is some text"):
                video.ask(question)
        with pytest.raises(ValueError, match="max_new_tokens=0"):
            video.ask(QUESTION, 0)
        with pytest.raises(ValueError, match="UTF-8"):
            video.ask("\udc80")
        with pytest.raises(ValueError, match="positions"):
            video.ask(QUESTION * 9000).text()
        assert video.ask(QUESTION, 4).text()
        assert video.status.frames == 1


def test_a_picture_of_another_size_is_taken():
    with live() as video:
        watch(video, [GREY, random_pictures(1, (64, 200))[0], GREY], [0, 1, 2])
        assert video.ask(QUESTION, 4).text() and not video.problems


def test_a_frame_that_fails_is_left_out_with_a_sentence(monkeypatch):
    with live() as video:
        watch(video, [GREY], [0])
        encode = video._seam.family.encode

        def broken(inputs):
            monkeypatch.setattr(video._seam.family, "encode", encode)
            raise RuntimeError("out of pixels")

        monkeypatch.setattr(video._seam.family, "encode", broken)
        watch(video, [GREY, GREY], [1, 2])
        assert list(video.problems) == ["the frame at 1.0 s was left out: RuntimeError: out of pixels"]
        assert (video.status.frames, video.status.failed) == (2, 1)
        assert video.ask(QUESTION, 4).text()


@pytest.mark.parametrize("settings, words", [
    ({"budget": 15}, "budget=15"), ({"budget": 2.5}, "budget=2.5"), ({"window": 0}, "window=0"), ({"fps": 0}, "fps=0"),
    ({"fps": math.nan}, "fps=nan"), ({"policy": "newest"}, "use one of fade, oldest, even"),
    ({"budget": 10**6}, "has positions for 32768"),
    ({"pruner": FastV(retention_ratio=0.7)}, "prunes inside the language model"),
    ({"pruner": FastVID()}, "keep_positions=False"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words), live(**settings):
        pass
    assert not hasattr(shipped().model.generate, "seam")


def test_a_budget_below_one_frame_is_said_and_held():
    with live(budget=16) as video:
        watch(video, random_pictures(12), range(12))
        answer = video.ask(QUESTION, 2)
        answer.text()
        assert "leaves 4 tokens for the newest segment, and one frame keeps 7" in video.problems[0]
        before, after = video._layout.prompt(QUESTION)
        assert answer.prompt - len(before) - len(after) - 1 <= 16


def test_frames_beyond_the_rate_are_skipped_and_those_beyond_the_queue_dropped():
    with live(fps=2) as video:
        with video._seam.lock:  # nothing is encoded now
            taken = [video.add(GREY, number / 8) for number in range(200)]
        video.wait()
        status = video.status
        assert sum(taken) == status.frames
        assert status.frames + status.skipped + status.dropped == 200
        assert status.skipped >= 2 * 16 and status.dropped > 0
        assert [number for number in range(40) if taken[number]] == list(range(0, 40, 4))


# -- threads and the model afterwards ----------------------------------------------------------------------------------


def test_two_questions_at_once_while_frames_come():
    pictures, times = scenes(3, 7, frames=16)
    with live(window=8) as video:
        watch(video, pictures[:1], times[:1])
        answers = []

        def ask():
            answers.extend(video.ask(QUESTION, 4).text() for _ in range(4))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        watch(video, pictures[1:], times[1:])
        for thread in threads:
            thread.join()
        assert len(answers) == 8 and all(answers) and not video.problems
        assert sum(held.frames for held in video.history) == 32


def test_the_text_comes_in_pieces_and_an_answer_may_be_given_up():
    with live() as video:
        watch(video, clip(3).frames, clip(3).timestamps)
        whole = video.ask(asked({"question": QUESTION, "options": ["red", "green", "blue", "pink"]}), 8)
        assert "".join(whole) == whole.text() and whole.done
        with video._seam.lock:  # nothing is written now
            given_up = video.ask(QUESTION, 30_000)
            given_up.cancel()
        given_up.text()
        assert given_up.new_tokens == 1 < whole.new_tokens


def test_a_question_follows_one_that_was_answered():
    with live() as video:
        watch(video, [GREY], [0])
        with pytest.raises(ValueError, match="follows='red': give what an earlier ask"):
            video.ask(QUESTION, 4, follows="red")
        with video._seam.lock:  # of two the first is never answered
            failed = video.ask("x" * 50, 40_000)
            after = video.ask(QUESTION, 4, follows=failed)
        with pytest.raises(ValueError, match="positions"):
            failed.text()
        with pytest.raises(ValueError, match=r"'x{50}', which this one follows, was not answered"):
            after.text()
        assert video.ask(QUESTION, 4, follows=video.ask(QUESTION, 4)).text()


def test_the_model_is_as_before_also_after_an_interruption():
    checkpoint = shipped()
    model = checkpoint.model
    before = {name: copy.copy(value) for name, value in vars(model).items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(KeyboardInterrupt), live() as video:  # noqa: PT012 (what a user's block may hold)
        watch(video, [GREY, GREY], [0, 1])
        late = video.ask(QUESTION, 20_000)
        with pytest.raises(RuntimeError, match="attached to this"), live():
            pass
        raise KeyboardInterrupt
    assert vars(model).keys() == before.keys()
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert not [thread for thread in threading.enumerate() if thread.name == "tango-live"]
    for call in (lambda: video.add(GREY, 9), lambda: video.ask(QUESTION)):
        with pytest.raises(RuntimeError, match="inside"):
            call()
    with pytest.raises(RuntimeError, match="entered once"), video:
        pass
    late.cancel()


def test_a_question_that_nobody_will_answer_says_so():
    with live() as video:
        watch(video, [GREY], [0])
        with video._seam.lock:
            second = [video.ask(QUESTION, 4) for _ in range(2)][1]
            video._closed = True
    with pytest.raises(RuntimeError, match="ended before"):
        second.text()


def test_other_models_and_methods():
    with live(pruner=Uniform(retention_ratio=0.1), window=4) as video:
        watch(video, random_pictures(10), range(10))
        assert [held.frames for held in video.history] == [4, 4, 2]
        assert video.ask(QUESTION, 4).text()
    with pytest.raises(ValueError, match="no live video with LLaVA-Video"):
        layout_of(SimpleNamespace(title="LLaVA-Video"), None, None)


def test_qwen_in_windows_is_qwen_in_one_piece(tmp_path):
    """Unpruned, however the stream is cut, and with the cache or without."""
    from tiny import save_qwen

    for new in (False, True):
        save_qwen(tmp_path / str(new), new=new, scale=6, pixels=32 * 32)
        checkpoint, logits = load(str(tmp_path / str(new))), {}
        for window in (64, 2):
            with live(checkpoint, Tango(retention_ratio=1.0), window=window, budget=8192) as video:
                forward = video._writer._forward
                own = logits[window] = []
                video._writer._forward = lambda piece, own=own, forward=forward: own.append(forward(piece)) or own[-1]
                for number, picture in enumerate(random_pictures(11, (32, 32))):
                    video.add(picture, number, wait=True)
                    if number in (3, 6, 10):
                        video.ask(QUESTION, 1).text()
        whole, cut = torch.cat(logits[64]), torch.cat(logits[2])
        assert torch.allclose(whole, cut, rtol=1e-3, atol=1e-3)
        assert (whole[0] - whole[1]).abs().max() > 0.01 and (whole[1] - whole[2]).abs().max() > 0.01
