"""LLaVA-OneVision in vLLM keeps the tokens and gives the answers that it does in transformers."""

import pytest
from engines import MODEL, OURS, ROOT, Reference, ask, kept, opened, prompted, questions, request, set_method
from PIL import Image
from vllm.exceptions import VLLMValidationError

from tango.inference.video import read_video
from tango.motionqa.shipped import DATA, FRAMES
from tango.pruners import REGISTRY, Tango
from tango.runs.settings import fingerprint

# Random draws by place, FastV prunes inside the language model and EarlyTom inside the tower: they are refused.
METHODS = sorted({*REGISTRY} - {"random", "fastv", "earlytom"})


@pytest.fixture(scope="module")
def engine():
    with opened(MODEL, OURS) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference():
    return Reference(MODEL)


@pytest.fixture(scope="module")
def asked():
    return questions(120)


@pytest.mark.parametrize("ratio", [0.1, 0.2])
def test_tokens_and_answers_of_motionqa(engine, reference, asked, ratio):
    pruner = set_method(engine, Tango(retention_ratio=ratio))
    expected = [reference.answer(pruner, text, [clip]) for text, clip in asked]
    with kept() as found:
        answers = ask(engine, [request(text, [clip]) for text, clip in asked])
    assert [answer for (answer,) in answers] == [answer for answer, _ in expected]
    indices = [one.indices.tolist() for one in found]
    assert len(indices) >= len({clip.frames.tobytes() for _, clip in asked})
    assert all(one in indices for _, (one,) in expected)
    again = ask(engine, [request(text, [clip]) for text, clip in asked])
    assert again == answers, "warm caches give other answers than cold ones"


@pytest.mark.parametrize("method", METHODS)
def test_every_method(engine, reference, asked, method):
    """Exactly the budget, the same tokens and answers; the caches hold what other methods made of these videos."""
    pruner = set_method(engine, REGISTRY[method](retention_ratio=0.15, keep_positions=False))
    some = asked[:4]
    with kept() as found:
        answers = ask(engine, [request(text, [clip]) for text, clip in some])
    for (answer,), one, (text, clip) in zip(answers, found, some, strict=True):
        expected, (indices,) = reference.answer(pruner, text, [clip])
        assert one.indices.tolist() == indices and len(indices) == pruner.budget(FRAMES, 64)
        assert answer == expected


def test_videos_images_and_text_in_any_order(engine, reference, asked):
    pruner = set_method(engine, Tango(retention_ratio=0.1))
    question, clips = asked[3][0].split("<video>\n")[1].partition("<|im_end|>")[0], [clip for _, clip in asked[:3]]
    images = [Image.fromarray(clips[0].frames[2]), Image.fromarray(clips[2].frames[5][:, :90])]
    orders = [
        (["<video>\n", "<image>\n", question], clips[:1], images[:1]),
        (["<image>\n", question, "<video>\n"], clips[:1], images[1:]),
        ([question, "<video>\n", " and ", "<video>\n"], clips[:2], []),
        (["<video>\n", "<image>\n", "<video>\n", "<image>\n", "<video>\n", question], clips, images),
        (["<image>\n", "<image>\n", question], [], images),
        ([question], [], []),
    ]
    requests = [request(prompted(parts), *media) for parts, *media in orders]
    with kept() as found:
        answers = ask(engine, requests)
    kinds = {tuple(one.indices.tolist()) for one in found}
    for (answer,), (parts, *media) in zip(answers, orders, strict=True):
        expected, indices = reference.answer(pruner if media[0] else None, prompted(parts), *media)
        assert answer == expected, parts
        assert {*map(tuple, indices)} <= kinds
    assert [ask(engine, [one])[0] for one in requests] == answers, "alone, another answer than in a batch"


def test_a_batch_of_unequal_lengths(engine, reference, asked):
    pruner = set_method(engine, Tango(retention_ratio=0.2))
    files = [ROOT / DATA / "videos" / f"{index}.mp4" for index in range(4)]
    some = [
        (asked[i][0], read_video(file, frames))
        for i, (file, frames) in enumerate(zip(files, (1, 2, 5, 20), strict=True))
    ]
    answers = ask(engine, [request(text, [clip]) for text, clip in some])
    assert [answer for (answer,) in answers] == [reference.answer(pruner, text, [clip])[0] for text, clip in some]


def test_several_answers_of_one_request(engine, reference, asked):
    """n answers as good as greedy: at a temperature of 0.01 no draw moves the first choice of these."""
    from vllm import SamplingParams

    pruner = set_method(engine, Tango(retention_ratio=0.1))
    some = asked[:6]
    options = SamplingParams(temperature=0.01, max_tokens=8, n=3, seed=1)
    outputs = engine.generate([request(text, [clip]) for text, clip in some], options, use_tqdm=False)
    for output, (text, clip) in zip(outputs, some, strict=True):
        expected, _ = reference.answer(pruner, text, [clip])
        assert [list(one.token_ids) for one in output.outputs] == [expected] * 3


def test_times_belong_to_a_video(engine, reference, asked):
    """The same frames at other times are another video; without times they are one second apart."""
    pruner = set_method(engine, Tango(retention_ratio=0.1))
    text, clip = asked[40]
    frames = range(FRAMES)
    for times in (clip.timestamps, tuple(float(9**i % 50 + 60 * i) for i in frames), tuple(map(float, frames))):
        other = type(clip)(clip.frames, times, clip.total_frames, clip.duration)
        with kept() as found:
            ((answer,),) = ask(engine, [request(text, [other])])
        expected, (indices,) = reference.answer(pruner, text, [other])
        assert answer == expected
        assert [one.indices.tolist() for one in found] == [indices], "what another time gave was taken from a cache"
    plain = {"prompt": text, "multi_modal_data": {"video": [clip.frames]}}
    counted = {"fps": 2.0, "frames_indices": [2 * i for i in frames], "total_num_frames": 99}
    by_rate = {"prompt": text, "multi_modal_data": {"video": [(clip.frames, counted)]}}
    assert ask(engine, [plain, by_rate]) == [[answer]] * 2


def test_other_settings_never_share_a_result(engine, reference, asked):
    text, clip = asked[8]
    others = [Tango(retention_ratio=0.1), Tango(retention_ratio=0.3), REGISTRY["topk"](retention_ratio=0.1)]
    keys = set()
    for pruner in [*others, Tango(retention_ratio=0.1001), Tango(retention_ratio=0.1, sink_tokens=(3,))]:
        set_method(engine, pruner)
        keys.add(fingerprint(pruner))
        with kept() as found:
            ((answer,),) = ask(engine, [request(text, [clip])])
        expected, (indices,) = reference.answer(pruner, text, [clip])
        assert answer == expected
        assert [one.indices.tolist() for one in found] in ([indices], []), "kept other tokens than in transformers"
        assert found or pruner == others[0], "taken from what another setting left in the caches"
    assert len(keys) == 5


def test_what_cannot_be_a_video_is_told(engine, asked):
    """Nothing of it reaches the engine, which answers the next request."""
    set_method(engine, Tango(retention_ratio=0.1))
    text, clip = asked[0]
    right = ask(engine, [request(text, [clip])])
    times = [0.0, 1.0]
    for video, said in (
        ((clip.frames[:0], {}), "no frames"),
        ((clip.frames, {"timestamps": times}), "2 times for a video"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(engine, [{"prompt": text, "multi_modal_data": {"video": [video]}}])
    with pytest.raises(VLLMValidationError, match="At most 4"):
        ask(engine, [request(prompted(["<video>\n"] * 5), [clip] * 5)])
    assert ask(engine, [request(text, [clip])]) == right
