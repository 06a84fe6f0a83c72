"""Qwen2.5-VL and Qwen3-VL in vLLM: kept tokens, positions and answers are those of transformers."""

import pytest
from engines import Reference, ask, check_method, check_orders, clips_of, opened, request, set_method
from PIL import Image
from tiny import save_qwen

from tango.pruners import REGISTRY, Tango

METHODS = sorted({*REGISTRY} - {"random", "fastv", "earlytom"})
FRAMES = (8, 5, 12, 2, 3)
VIDEO, IMAGE = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))


def prompted(*parts):
    return f"<|im_start|>user {''.join(parts)}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request, tmp_path_factory):
    """A folder with random weights, and what --hf-overrides says to prune it."""
    new = request.param == "qwen3_vl"
    folder = tmp_path_factory.mktemp("models") / request.param
    save_qwen(folder, new, head=32, scale=6, pixels=40 * 40, video=12 if new else 1)
    name = "Qwen3VL" if new else "Qwen2_5_VL"
    return folder, {"architectures": [f"Tango{name}ForConditionalGeneration"], "tango": {"method": "tango"}}


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model[0])


@pytest.fixture(scope="module")
def engine(model):
    with opened(*model) as llm:
        yield llm


@pytest.fixture(scope="module")
def clips():
    return clips_of(FRAMES)


@pytest.fixture(scope="module")
def orders(clips):
    """Prompts with their videos and images."""
    images = [Image.fromarray(clips[0].frames[2]), Image.fromarray(clips[2].frames[5][:, :90])]
    return [
        (prompted(VIDEO, "What is seen?"), clips[:1], []),
        (prompted("Compare", VIDEO, "with", VIDEO, "please"), clips[1:3], []),
        (prompted(IMAGE, "then", VIDEO, "and", IMAGE, "Why?"), clips[4:5], images),
        (prompted(VIDEO, IMAGE, VIDEO, VIDEO), [clips[3], clips[0], clips[3]], images[1:]),
        (prompted(IMAGE, IMAGE, "Which?"), [], images),
        (prompted("Nothing to see"), [], []),
    ]


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 1.0])
def test_any_order_cold_warm_alone_and_together(engine, reference, orders, ratio):
    check_orders(engine, reference, orders, set_method(engine, Tango(retention_ratio=ratio)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method(engine, reference, clips, method):
    pruner = set_method(engine, REGISTRY[method](retention_ratio=0.3))
    assert len(list(check_method(engine, reference, clips[:3], pruner, prompted(VIDEO, "What is seen?")))) == 3


@pytest.mark.parametrize("batched", [32, 80])
def test_chunked_prefill(model, reference, orders, batched):
    """Chunks end inside of videos; log-probabilities are those of one chunk to 1e-4."""
    folder, config = model
    config = config | {"tango": {"method": "tango", "retention_ratio": 0.5}}
    pruner = Tango(retention_ratio=0.5)
    with opened(folder, config, max_num_batched_tokens=batched, max_num_seqs=4) as llm:
        answers = ask(llm, [request(*one) for one in orders])
        again = ask(llm, [request(*one) for one in orders])
    assert [answer for (answer,) in answers] == [
        reference.answer(pruner if one[1] else None, *one)[0] for one in orders
    ]
    assert again == answers
