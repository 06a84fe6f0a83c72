"""The way users come to the Qwen families: a chat template, the model's own processor, frames of any size."""

import numpy as np
import pytest
import torch
from families import FAMILIES, Spy, make_pruner
from tiny_qwen import PAD, VIDEO, VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tango.models import attach

SPECIAL = {PAD: "<pad>", 1: "<eos>", 90: "<|image_pad|>", 91: "<|video_pad|>", 92: "<|vision_start|>",
           93: "<|vision_end|>"}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' if part['type'] == 'video' else part['text'] }} "
    "{% endfor %}{% endfor %}"
)


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def family(request):
    return FAMILIES[request.param]


def make_processor(family):
    words = {SPECIAL.get(index, f"w{index}"): index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left",
        additional_special_tokens=list(SPECIAL.values())[2:],
    )  # fmt: skip
    new = family.name == "qwen3_vl"
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    bounds = {"shortest_edge": 64, "longest_edge": 4096}
    image = Qwen2VLImageProcessor(**sizes, size=bounds)
    if new:
        video = Qwen3VLVideoProcessor(**sizes, size=bounds, do_sample_frames=False, cap_pixels_per_frame=False)
        return Qwen3VLProcessor(image, fast, video, chat_template=TEMPLATE)
    video = Qwen2VLVideoProcessor(**sizes, size=bounds, do_sample_frames=False)
    return Qwen2_5_VLProcessor(image, fast, video, chat_template=TEMPLATE)


def test_from_messages_to_answers(family):
    model, processor = family.model(), make_processor(family)
    generator = np.random.default_rng(0)
    videos = [generator.integers(0, 255, (5, 3, *size), dtype=np.uint8) for size in ((48, 30), (20, 64))]
    chats = [
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        for text in ("w5 w6 w7", "w8")
    ]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    metadata = [{"fps": fps, "frames_indices": [0, 4, 8, 12, 16], "total_num_frames": 24} for fps in (4, 8)]
    settings = {"return_metadata": True, "return_tensors": "pt", "padding": True}

    def process(*which):
        own = [[values[index] for index in which] for values in (prompts, videos, metadata)]
        return processor(text=own[0], videos=own[1], video_metadata=own[2], **settings)

    inputs = process(0, 1)
    grids = inputs["video_grid_thw"]
    assert grids[:, 0].tolist() == [3, 3]  # of 5 frames, the last taken twice
    assert len({tuple(grid) for grid in grids.tolist()}) == 2
    assert (inputs["input_ids"] == VIDEO).sum() == grids.prod(1).sum() // 4
    assert {"mm_token_type_ids", "video_metadata"} <= set(inputs)

    spy = Spy([0, 3])
    with attach(model, spy):
        model.generate(**inputs, max_new_tokens=1)
    assert [call["timestamps"].tolist() for call in spy.calls] == [[0.5, 2.5, 4], [0.25, 1.25, 2]]
    assert [call["grid"] for call in spy.calls] == [(h // 2, w // 2) for _, h, w in grids.tolist()]

    answer = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [90, VIDEO]}
    plain = model.generate(**inputs_for_model(inputs), **answer)
    with make_pruner("tango", 1.0)(model):
        assert torch.equal(model.generate(**inputs, **answer), plain)
    with make_pruner("tango", 0.3)(model) as session:
        out = model.generate(**inputs, **answer)
        assert [record.tokens_after < record.tokens_before for record in session.videos] == [True, True]
        singles = [process(index) for index in (0, 1)]
        alone = [model.generate(**single, **answer)[0, single["input_ids"].shape[1] :] for single in singles]
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    singly = [processor.decode(ids, skip_special_tokens=True) for ids in alone]
    assert answers == singly
    assert all(text.startswith("w") for text in answers)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def inputs_for_model(inputs):
    """Without what only the pruner takes."""
    return {name: value for name, value in inputs.items() if name != "video_metadata"}
