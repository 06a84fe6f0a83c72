"""Engines with other options than the usual ones: each gives LLaVA-OneVision the answers that transformers gives."""

import pytest
from engines import MODEL, OURS, Reference, ask, kept, model_of, opened, prompted, published_layout, questions, request
from PIL import Image

from tango.pruners import Tango

CHOSEN = OURS | {"tango": {"method": "tango", "retention_ratio": 0.2}}
PRUNER = Tango(retention_ratio=0.2)


@pytest.fixture(scope="module")
def asked():
    return questions(30, first=3)


@pytest.fixture(scope="module")
def expected(asked):
    reference = Reference(MODEL)
    return [reference.answer(PRUNER, text, [clip])[0] for text, clip in asked]


@pytest.mark.parametrize(
    "options",
    [{"max_num_batched_tokens": 48, "max_num_seqs": 4}, {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}],
)
def test_chunked_prefill_and_without_caches(asked, expected, options):
    with opened(MODEL, CHOSEN, **options) as llm:
        answers = ask(llm, [request(text, [clip]) for text, clip in asked])
    assert [answer for (answer,) in answers] == expected


def test_a_video_longer_than_a_step_of_the_engine():
    """Of 20 frames, where vLLM's own count of a video's tokens is that of 16."""
    ((text, clip),) = questions(1, frames=20)
    wanted, (indices,) = Reference(MODEL).answer(PRUNER, text, [clip])
    assert len(indices) == 256
    with opened(MODEL, CHOSEN, max_num_batched_tokens=48, max_num_seqs=4, max_model_len=1024) as llm:
        assert ask(llm, [request(text, [clip])]) == [[wanted]]


def test_bf16(asked):
    """Nearly all: vLLM's linear layers and transformers' round differently there, and near ties fall otherwise."""
    reference = Reference(MODEL, "bfloat16")
    with opened(MODEL, CHOSEN, dtype="bfloat16") as llm:
        same = kept_same = total = 0
        for text, clip in asked:
            with kept() as found:
                ((answer,),) = ask(llm, [request(text, [clip])])
            again = ask(llm, [request(text, [clip])])
            assert again == [[answer]]
            wanted, (indices,) = reference.answer(PRUNER, text, [clip])
            same += answer == wanted
            if found:
                total += len(indices)
                kept_same += len({*indices} & {*found[0].indices.tolist()})
    print(f"bf16: {same} of {len(asked)} answers, {kept_same} of {total} kept tokens the same")
    assert same >= len(asked) - 1 and kept_same >= 0.97 * total


def test_preempted_requests_answer_the_same(asked, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    requests = [request(text, [clip]) for text, clip in asked[:8]]
    reference = Reference(MODEL)
    reference.model.generation_config.eos_token_id = None
    wanted = [reference.answer(PRUNER, text, [clip], tokens=100)[0] for text, clip in asked[:8]]
    preempted, original = [], Scheduler._preempt_request

    def counted(self, one, *rest, **options):
        preempted.append(one)
        return original(self, one, *rest, **options)

    monkeypatch.setattr(Scheduler, "_preempt_request", counted)
    with opened(MODEL, CHOSEN, num_gpu_blocks_override=20, max_model_len=512, block_size=32) as llm:
        answers = ask(llm, requests, 100, ignore_eos=True)
    assert preempted
    assert [answer for (answer,) in answers] == wanted


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return published_layout(tmp_path_factory.mktemp("models") / "published")


def test_without_wrapper_vllm_is_as_it_is(published, asked):
    """The plugin is loaded: the model is vLLM's own class, and its answers those of the unpruned model."""
    clips = [clip for _, clip in asked[:3]]
    image = Image.fromarray(clips[0].frames[0])
    orders = [(text, [clip], []) for text, clip in asked[:6]]
    orders += [(prompted(["<video>\n", "<image>\n", "<video>\n", "What?"]), clips[:2], [image])]
    orders += [(prompted(["<image>\n", "What colour?"]), [], [image]), (prompted(["Hello"]), [], [])]
    reference = Reference(MODEL)
    with opened(published) as llm:
        assert type(model_of(llm)).__module__ == "vllm.model_executor.models.llava_onevision"
        answers = ask(llm, [request(*one) for one in orders])
    assert [answer for (answer,) in answers] == [reference.answer(None, *one)[0] for one in orders]


def test_a_published_layout_is_pruned_too(published, asked, expected):
    config = CHOSEN | {"tango": CHOSEN["tango"] | {"saliency_weights": str(MODEL / "pooling_head.safetensors")}}
    with opened(published, config) as llm:
        answers = ask(llm, [request(text, [clip]) for text, clip in asked[:10]])
    assert [answer for (answer,) in answers] == expected[:10]
