"""InternVL in vLLM: kept tokens, what the decoder is given, and answers are those of transformers."""

import json
import re
import shutil

import pytest
import tiny_families
import torch
from engines import Reference, ask, check_method, check_orders, clips_of, opened, request, set_method
from PIL import Image
from transformers import BatchFeature

from tango.pruners import REGISTRY, Tango
from tango.runs.settings import SettingsError

METHODS = sorted({*REGISTRY} - {"random", "fastv", "earlytom"})
FRAMES = (8, 5, 12, 1, 3)
VIDEO, IMAGE = "<video>", "<IMG_CONTEXT>"
CHOSEN = {"architectures": ["TangoInternVLForConditionalGeneration"], "tango": {"method": "tango"}}


def prompted(*parts):
    return f"<|im_start|>user\n{''.join(parts)}<|im_end|>\n<|im_start|>assistant\n"


class InternVL(Reference):
    """transformers' processor takes several videos only if they are equally long: each visual goes to it by itself."""

    def inputs(self, prompt, clips=(), images=()):
        clips, images, found, frames = iter(clips), iter(images), [], []
        for part in filter(None, re.split(f"({VIDEO}|{IMAGE})", prompt)):
            clip = next(clips) if part == VIDEO else None
            shown = ([clip], []) if clip else ([], [next(images)]) if part == IMAGE else ([], [])
            found.append(super().inputs(part, *shown))
            frames += [len(clip.frames) if clip else 0] * any(shown)
        pixels = [one["pixel_values"] for one in found if "pixel_values" in one]
        data = {"input_ids": torch.cat([one["input_ids"] for one in found], 1)}
        data |= {"pixel_values": torch.cat(pixels)} if pixels else {}
        return BatchFeature(data | ({"video_frames": frames} if any(frames) else {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights."""
    folder = tmp_path_factory.mktemp("models") / "internvl"
    tiny_families.save("internvl", folder, 32)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return InternVL(folder)


@pytest.fixture(scope="module")
def engine(folder):
    with opened(folder, CHOSEN) as llm:
        yield llm


@pytest.fixture(scope="module")
def clips():
    return clips_of(FRAMES)


@pytest.fixture(scope="module")
def orders(clips):
    """Prompts with their videos and images; the first image is of several tiles."""
    images = [Image.fromarray(clips[0].frames[2]).resize((96, 48)), Image.fromarray(clips[2].frames[5][:, :90])]
    return [
        (prompted(VIDEO, "\nWhat is seen?"), clips[:1], []),
        (prompted("Compare\n", VIDEO, "\nwith\n", VIDEO, "\nplease"), clips[1:3], []),
        (prompted(IMAGE, "\nthen\n", VIDEO, "\nand ", IMAGE, "\nWhy?"), clips[4:5], images),
        (prompted(VIDEO, IMAGE, VIDEO, VIDEO), [clips[3], clips[0], clips[3]], images[1:]),
        (prompted(IMAGE, IMAGE, "Which?"), [], images),
        (prompted("Nothing to see"), [], []),
    ]


def test_a_prompt_is_that_of_the_processor_of_transformers(reference, orders):
    """Put together from its parts, too, which the other tests build on."""
    for text, *media in (orders[0], orders[4]):
        whole, parts = Reference.inputs(reference, text, *media), reference.inputs(text, *media)
        assert all(torch.equal(whole[name], parts[name]) for name in ("input_ids", "pixel_values"))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 1.0])
def test_any_order_cold_warm_alone_and_together(engine, reference, orders, ratio):
    cold = check_orders(engine, reference, orders, set_method(engine, Tango(retention_ratio=ratio)))
    assert len({json.dumps(answer) for answer in cold}) > 3, "answers all alike"


@pytest.mark.parametrize("method", METHODS)
def test_every_method(engine, reference, clips, method):
    pruner = set_method(engine, REGISTRY[method](retention_ratio=0.3, keep_positions=False))
    found = check_method(engine, reference, clips[:3], pruner, prompted(VIDEO, "\nWhat is seen?"))
    for clip, indices in zip(clips[:3], found, strict=True):
        assert len(indices) == pruner.budget(len(clip.frames), tiny_families.TOKENS)


@pytest.mark.parametrize("batched", [32, 80])
def test_chunked_prefill(folder, reference, orders, batched):
    """Chunks end inside of videos, the longest of which has more tokens than a chunk."""
    config = CHOSEN | {"tango": {"method": "tango", "retention_ratio": 0.5}}
    pruner = Tango(retention_ratio=0.5)
    with opened(folder, config, max_num_batched_tokens=batched, max_num_seqs=4) as llm:
        answers = ask(llm, [request(*one) for one in orders])
        again = ask(llm, [request(*one) for one in orders])
    assert [answer for (answer,) in answers] == [
        reference.answer(pruner if one[1] else None, *one)[0] for one in orders
    ]
    assert again == answers


@pytest.mark.parametrize("change, method, said", [
    ({}, {"method": "tango", "keep_positions": True}, "without gaps"),
    ({}, {"method": "tango", "saliency": "pooling_head"}, "this model has global_query, received_attention"),
    ({"vision_feature_layer": -2}, {"method": "tango"}, "the last vision layer"),
])  # fmt: skip
def test_refusals(folder, tmp_path, change, method, said):
    """When the engine starts."""
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=said), opened(other, CHOSEN | {"tango": method}):
        pass
