"""An answer about a finished short clip, nothing thinned, is generate()'s answer on the same clip."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from streams import DATA, ROWS, asked, live, scenes, shipped, watch
from tiny import save_qwen, write_video

from tango import Tango
from tango.inference.chat import Chat, PixelLimits
from tango.inference.checkpoints import load
from tango.inference.video import read_video
from tango.live import memory
from tango.models import attach
from tango.pruners import REGISTRY
from tango.pruners.video import VideoTokens


def by_generate(pruner, pictures, times, questions):
    """Answers to questions, or to turns of conversations, and the indices and segments that were kept."""
    checkpoint, answers = shipped(), []
    with torch.inference_mode(), attach(checkpoint.model, pruner) as session:
        for question in questions:
            messages = conversation([question] if isinstance(question, str) else question, {"type": "video"})
            text = checkpoint.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = checkpoint.processor(text=text, videos=[pictures], return_tensors="pt")
            out = checkpoint.model.generate(**inputs, video_timestamps=[times], max_new_tokens=8, do_sample=False)
            answers.append(
                checkpoint.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            )
        return answers, session.videos[0]


@pytest.mark.parametrize("ratio", [0.1, 0.25, 1.0])
def test_on_motionqa_sample_by_sample(ratio):
    rows = ROWS[:12]
    chat = Chat(shipped(), Tango(retention_ratio=ratio), max_frames=8)
    right = {}
    with chat.session():
        for row in rows:
            parts = [{"type": "video", "video": str(DATA / row["video"])}, {"type": "text", "text": asked(row)}]
            answer = chat.generate([{"role": "user", "content": parts}], {"max_new_tokens": 8}, row["id"])
            right[row["id"]] = answer.response
    assert len(set(right.values())) > 5
    for name in dict.fromkeys(row["video"] for row in rows):
        clip = read_video(DATA / name, 8)
        with live(pruner=Tango(retention_ratio=ratio)) as video:
            watch(video, clip.frames, [1.7e9 + time for time in clip.timestamps])
            for row in rows:
                if row["video"] == name:
                    assert video.ask(asked(row), 8).text().strip() == right[row["id"]], row["id"]


@pytest.mark.parametrize("ratio", [0.1, 0.25])
def test_where_segments_have_closed(ratio):
    """Four scenes one after another, at a threshold at which most cuts are final, and what is kept to the index."""
    pruner = Tango(retention_ratio=ratio, similarity_threshold=0.97)
    pictures, times = scenes(3, 7, 11, 20)
    questions = [asked(row) for row in ROWS if row["video"] in ("videos/7.mp4", "videos/20.mp4")]
    answers, record = by_generate(pruner, pictures, times, questions)
    with live(pruner=pruner) as video:
        watch(video, pictures, times)
        assert [video.ask(question, 8).text().strip() for question in questions] == [a.strip() for a in answers]
        closed, sizes = video._holding.segments, [segment.frames for segment in video._holding.segments]
        assert len(closed) > 5 and all(segment.final for segment in closed)
        assert sizes == record.segment_sizes[: len(sizes)]
        kept = [64 * (segment.number + segment.kept.frames) + segment.kept.places for segment in closed]
        tail = video._holding.newest(video._encoder.rest())
        kept.append(64 * (tail.number + tail.kept.frames) + tail.kept.places)
        assert torch.equal(torch.cat(kept), record.indices)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_that_prunes_before_the_language_model(name):
    pruner = REGISTRY[name](retention_ratio=0.25)
    if name == "fastv" or pruner.in_llm(4) is not None:
        pytest.skip("refused, see test_bad_input.py")
    pruner = replace(pruner, keep_positions=False)
    pictures, times = scenes(3)
    questions = [asked(row) for row in ROWS if row["video"] == "videos/3.mp4"]
    answers, _ = by_generate(pruner, pictures, times, questions)
    with live(pruner=pruner) as video:
        watch(video, pictures, times)
        assert [video.ask(question, 8).text().strip() for question in questions] == [a.strip() for a in answers]


@pytest.fixture(scope="module", params=[False, True], ids=["qwen2.5", "qwen3"])
def qwen(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen(folder, new=request.param, scale=6, pixels=32 * 32)
    return load(str(folder))


@pytest.mark.parametrize("ratio", [0.2, 1.0])
@pytest.mark.parametrize("frames", [8, 7], ids=["even", "odd"])
def test_qwen(qwen, tmp_path, ratio, frames):
    """With real times and M-RoPE; a frame is two sampled ones, and an odd last one is repeated."""
    write_video(tmp_path / "clip.mp4", frames=frames, rate=1)
    limits = PixelLimits(min_pixels=24 * 24, max_pixels=32 * 32)
    pruner = Tango(retention_ratio=ratio, similarity_threshold=0.9)
    chat = Chat(qwen, pruner, max_frames=frames, limits=limits)
    clip = read_video(tmp_path / "clip.mp4", frames)
    questions, right = ["What?", "Where does the square go?", "Name <|video_pad|> it."], []
    with chat.session():
        for question in questions:
            parts = [{"type": "video", "video": str(tmp_path / "clip.mp4")}, {"type": "text", "text": question}]
            answer = chat.generate([{"role": "user", "content": parts}], {"max_new_tokens": 12}, "0")
            right.append(answer.response)
    with live(qwen, pruner, limits=limits) as video:
        watch(video, clip.frames, clip.timestamps)
        assert [video.ask(question, 12).text().strip() for question in questions] == right
        assert not video.problems
    assert len({*right}) == 3


def conversation(texts, video):
    """Turns of user and assistant, one after the other; the video stands in the first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": [{"type": "text", "text": text}]} for n, text in enumerate(texts)]
    messages[0]["content"].insert(0, video)
    return messages


def check_turns(checkpoint, pruner, file, limits, questions):
    """Each question goes on from the one before, and each answer is an ordinary run's to the whole conversation."""
    clip, answers = read_video(file, 8), []
    with live(checkpoint, pruner, limits=limits) as video:
        watch(video, clip.frames, clip.timestamps)
        for question in questions:  # without waiting for the answer
            answers.append(video.ask(question, 12, follows=answers[-1] if answers else None))
        said = [answer.text() for answer in answers]
        alone = video.ask(questions[-1], 12)
        alone.text()
        # All that a conversation adds is the text of its turns; what is held of the stream is found in the cache.
        assert answers[-1].reused == alone.reused > 0 and answers[-1].prompt > alone.prompt
    chat, texts = Chat(checkpoint, pruner, max_frames=8, limits=limits), []
    with chat.session():
        for question, answer in zip(questions, said, strict=True):
            messages = conversation([*texts, question], {"type": "video", "video": str(file)})
            assert answer.strip() == chat.generate(messages, {"max_new_tokens": 12}, "0").response
            texts += [question, answer]
    return said


def test_a_question_that_follows_another_sees_it_and_its_answer():
    questions = [asked(row) for row in ROWS if row["video"] == "videos/3.mp4"][:3]
    questions.insert(1, "Name <video> and <|im_end|> it.")
    pruner = Tango(retention_ratio=0.25, similarity_threshold=0.97)
    check_turns(shipped(), pruner, DATA / "videos/3.mp4", None, questions)


def test_turns_of_qwen(qwen, tmp_path):
    write_video(tmp_path / "clip.mp4", frames=8, rate=1)
    limits = PixelLimits(min_pixels=24 * 24, max_pixels=32 * 32)
    pruner = Tango(retention_ratio=0.2, similarity_threshold=0.9)
    check_turns(qwen, pruner, tmp_path / "clip.mp4", limits, ["What?", "Where does the square go?", "What?"])


def test_a_conversation_goes_on_while_the_stream_does():
    """Its turns stand after the stream as it is at the last question."""
    pictures, times = scenes(3, 7)
    pruner = Tango(retention_ratio=0.25, similarity_threshold=0.97)
    with live(pruner=pruner) as video:
        watch(video, pictures[:8], times[:8])
        first = video.ask("What colour is the ring?", 8)
        said = first.text()
        watch(video, pictures[8:], times[8:])
        second = video.ask("And now?", 8, follows=first)
        found = second.text().strip()
        assert second.reused > 0
    (answer,), _ = by_generate(pruner, pictures, times, [("What colour is the ring?", said, "And now?")])
    assert found == answer.strip()


def test_a_repetition_penalty_of_the_checkpoint_holds(qwen):
    """As in published Qwen2.5-VL: without it this model repeats itself."""
    picture = np.full((32, 32, 3), 90, np.uint8)
    config = qwen.model.generation_config
    try:
        answers = []
        for penalty in (1.0, 5.0):
            config.repetition_penalty = penalty
            with live(qwen) as video:
                watch(video, [picture, picture], [0, 1])
                answers.append(video.ask("What?", 12).text())
        assert len(set(answers[1])) > len(set(answers[0]))
    finally:
        config.repetition_penalty = None


def test_levels_are_the_methods_own_choice():
    generator = torch.Generator().manual_seed(1)
    video = VideoTokens(
        torch.randn(6, 16, 8, generator=generator), (4, 4), torch.arange(6), torch.rand(6, 16, generator=generator)
    )
    found = memory.levels(Tango(retention_ratio=0.3), video, None)
    frames, places, _ = video.features.shape
    for level in found[1:]:
        own = Tango(retention_ratio=len(level.frames) / (frames * places), exact_budget=True).prune_tokens(video)
        assert torch.equal(own.indices, level.frames * places + level.places)
    sizes = [len(level.frames) for level in found]
    assert sizes[1:] == [size // 2 for size in sizes[:-1]] and sizes[-1] == 1
