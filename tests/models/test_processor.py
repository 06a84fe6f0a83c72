"""The way users come: a chat template, a processor, frames of any size, and a slice of generate()'s output."""

import numpy as np
import pytest
import torch
from families import Spy
from tiny_llava import IMAGE, PAD, TOKENS, VIDEO, VOCABULARY, make_pruner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from tango.models import attach

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<video>' if part['type'] == 'video' else part['text'] }} {% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def processor():
    words = {f"w{index}": index for index in range(VOCABULARY)}
    for index, word in ((PAD, "<pad>"), (1, "<eos>"), (IMAGE, "<image>"), (VIDEO, "<video>")):
        words = {name: place for name, place in words.items() if place != index} | {word: index}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left",
        additional_special_tokens=["<image>", "<video>"],
    )  # fmt: skip
    size = {"height": 40, "width": 40}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[40, 40], [40, 80]]),
        fast,
        LlavaOnevisionVideoProcessor(size=size, do_sample_frames=False),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def test_from_messages_to_answers(request, processor):
    model = request.getfixturevalue("models")()
    generator = np.random.default_rng(0)
    videos = [generator.integers(0, 255, (6, 3, *size), dtype=np.uint8) for size in ((48, 30), (20, 90))]
    chats = [
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        for text in ("w5 w6 w7", "w8")
    ]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    metadata = [{"fps": fps, "frames_indices": [0, 4, 8, 12, 16, 20], "total_num_frames": 24} for fps in (4, 8)]
    inputs = processor(
        text=prompts, videos=videos, video_metadata=metadata, return_metadata=True, padding=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == VIDEO).sum().item() == 2 * (6 * TOKENS + 1)
    assert "video_metadata" in inputs

    spy = Spy()
    with attach(model, spy):
        model.generate(**inputs, max_new_tokens=1)
    assert [call["timestamps"].tolist() for call in spy.calls] == [[0, 1, 2, 3, 4, 5], [0, 0.5, 1, 1.5, 2, 2.5]]

    with make_pruner("tango", 0.2)(model) as session:
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        alone = []
        for index, rate in enumerate((1, 2)):
            single = processor(text=prompts[index], videos=[videos[index]], return_tensors="pt")
            times = [torch.arange(6) / rate]
            alone.append(model.generate(**single, max_new_tokens=5, do_sample=False, video_timestamps=times))
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    singly = [processor.decode(ids[0, -5:], skip_special_tokens=True) for ids in alone]
    assert answers == singly
    assert all(answer.startswith("w") for answer in answers)
    assert len(session.videos) == 1
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
