"""Qwen3.5 in vLLM: what its decoder is given is what transformers gives it.

vLLM's linear attention for CPUs computes in bf16 alone, in an order of its own, so that equal prompts, also those
without a video, need not have equal answers: compared are kept tokens, tokens of the prompt, positions, and embeddings.
"""

import pytest
import tiny_families
import torch
from engines import Reference, ask, clips_of, given, kept, model_of, opened, request, set_method
from PIL import Image

from tango.pruners import REGISTRY, Tango

VIDEO, IMAGE = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))
METHODS = sorted({*REGISTRY} - {"random", "fastv", "earlytom", "prunevid"})  # prunevid clusters otherwise in bf16


def prompted(*parts):
    return f"<|im_start|>user {''.join(parts)}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "qwen3_5"
    tiny_families.save("qwen3_5", folder, 32)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder, "bfloat16")


@pytest.fixture(scope="module")
def engine(folder):
    config = {"architectures": ["TangoQwen3_5ForConditionalGeneration"], "tango": {"method": "tango"}}
    with opened(folder, config, dtype="bfloat16") as llm:
        yield llm


@pytest.fixture(scope="module")
def orders():
    clips = clips_of((8, 5, 2, 3))
    image = Image.fromarray(clips[0].frames[2])
    return [
        (prompted(VIDEO, "What is seen?"), clips[:1], []),
        (prompted("Compare", VIDEO, "with", VIDEO, "please"), clips[1:3], []),
        (prompted(IMAGE, "then", VIDEO, "Why?"), clips[3:], [image]),
        (prompted("Nothing to see"), [], []),
    ]


def compared(engine, reference, pruner, asked):
    """What the decoder gets of one prompt is the same in both."""
    with kept() as found, given(model_of(engine).language_model.model) as ours:
        ask(engine, [request(*asked)])
    with given(reference.model.model.language_model) as theirs:
        _, indices = reference.answer(pruner if asked[1] else None, *asked)
    assert [one.indices.tolist() for one in found] == indices
    (places, embedded), (wanted, meant) = ours[0], theirs[0]
    assert torch.equal(places[:, : wanted.shape[1]], wanted)
    off = (embedded[: len(meant)] - meant).norm(dim=1) / meant.norm(dim=1)
    assert off.max() < 0.05, "of a token's embedding, by more than bf16 rounds in two layers"


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_any_order(engine, reference, orders, ratio):
    pruner = set_method(engine, Tango(retention_ratio=ratio))
    engine.reset_prefix_cache()
    for asked in orders:
        compared(engine, reference, pruner, asked)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(engine, reference, orders, method):
    compared(engine, reference, set_method(engine, REGISTRY[method](retention_ratio=0.3)), orders[0])


def test_cold_warm_and_together(engine, orders):
    set_method(engine, Tango(retention_ratio=0.4))
    cold = [ask(engine, [request(*asked)])[0] for asked in orders]
    assert [ask(engine, [request(*asked)])[0] for asked in orders] == cold
