"""The shipped model: a genuine LLaVA-OneVision that sees what it is asked about, its saliency trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from tango import Tango
from tango.inference.video import read_video
from tango.motionqa.questions import LETTERS, Question
from tango.motionqa.scenes import GLYPH_HEIGHT, GLYPH_WIDTH, sample_spec
from tango.pruners.topk import TopK
from tango.runs.scoring import parse_choice

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "tango-tiny"
DATA = ROOT / "data" / "motionqa"
ROWS = json.loads((DATA / "test.json").read_text())
TRAINING = json.loads((CHECKPOINT / "training.json").read_text())


@pytest.fixture(scope="module")
def loaded():
    return AutoProcessor.from_pretrained(CHECKPOINT), LlavaOnevisionForConditionalGeneration.from_pretrained(
        CHECKPOINT
    ).eval()


def prompt_of(processor, row, video: bool):
    question = Question(row["kind"], row["question"], tuple(row["options"]), LETTERS.index(row["answer"]))
    parts = [{"type": "video"}] * video + [{"type": "text", "text": question.prompt()}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    if not video:
        return processor(text=text, return_tensors="pt"), None
    clip = read_video(DATA / row["video"], 8)
    return processor(text=text, videos=[clip.frames], return_tensors="pt"), clip.timestamps


def reply(processor, model, inputs, **kwargs):
    out = model.generate(**inputs, **kwargs, max_new_tokens=8, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_files_are_small_and_safe():
    weights = list(CHECKPOINT.glob("*.safetensors"))
    assert {w.name for w in weights} == {"model.safetensors", "pooling_head.safetensors"}
    shipped = [*CHECKPOINT.rglob("*"), *DATA.rglob("*")]
    assert sum(f.stat().st_size for f in shipped) < 25 * 2**20
    assert not [f for f in shipped if f.suffix in (".bin", ".pt", ".pkl")]
    with safe_open(CHECKPOINT / "pooling_head.safetensors", "pt") as head:
        assert "vision_model.head.probe" in head.keys()  # noqa: SIM118 (safe_open is no mapping)


def test_the_unpruned_model_answers_as_its_record_says(loaded):
    processor, model = loaded
    rows = ROWS[:60]
    right = 0
    for row in rows:
        inputs, _ = prompt_of(processor, row, video=True)
        right += parse_choice(reply(processor, model, inputs), row["options"]) == row["answer"]
    expected = TRAINING["validation_accuracy"]["overall"]
    # Three standard errors of 60 answers.
    assert right / len(rows) == pytest.approx(expected, abs=3 * (expected * (1 - expected) / len(rows)) ** 0.5)


def test_without_the_video_it_scores_chance(loaded):
    processor, model = loaded
    rows = ROWS[::2]
    right = 0
    for row in rows:
        inputs, _ = prompt_of(processor, row, video=False)
        right += parse_choice(reply(processor, model, inputs), row["options"]) == row["answer"]
    assert right / len(rows) < 0.25 + 3 * (0.25 * 0.75 / len(rows)) ** 0.5


def test_one_token_in_ten_is_kept(loaded):
    processor, model = loaded
    inputs, times = prompt_of(processor, ROWS[0], video=True)
    with torch.no_grad():
        before = model(**inputs).logits
    with Tango(retention_ratio=0.1)(model) as session:
        reply(processor, model, inputs, video_timestamps=[times])
    record = session.videos[0]
    assert record.tokens_before == 8 * 64
    assert 51 <= record.tokens_after <= 75  # every set rounds its own budget up
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def on_objects(spec, times):
    """(F, 8, 8) whether a token's 16 x 16 pixels meet a coloured shape, a dot or the glyph."""
    mask = torch.zeros(len(times), 8, 8, dtype=torch.bool)
    for f, time in enumerate(times):
        boxes = []
        for actor in spec.actors:
            if actor.start <= time < actor.end:
                x, y = actor.position(time)
                boxes.append((x - actor.radius, y - actor.radius, x + actor.radius, y + actor.radius))
        if spec.dots_window[0] <= time < spec.dots_window[1]:
            boxes += [(x - 5, y - 5, x + 5, y + 5) for x, y in spec.dots]
        if spec.glyph_window[0] <= time < spec.glyph_window[1]:
            x, y = spec.glyph_at
            boxes.append((x, y, x + GLYPH_WIDTH, y + GLYPH_HEIGHT))
        for left, top, right, bottom in boxes:
            mask[f, int(top // 16) : int(bottom // 16) + 1, int(left // 16) : int(right // 16) + 1] = True
    return mask


def test_the_pooling_head_looks_at_what_is_drawn(loaded):
    """Untrained, its attention would be spread evenly, and a kept token as likely as any to lie on an object."""
    processor, model = loaded
    kept_on, kept, all_on, everything = 0, 0, 0, 0
    for row in ROWS[:60:6]:
        inputs, times = prompt_of(processor, row, video=True)
        with TopK(retention_ratio=0.1)(model) as session:
            reply(processor, model, inputs)
        mask = on_objects(sample_spec(int(Path(row["video"]).stem)), times).flatten()
        indices = session.videos[0].indices
        kept_on, kept = kept_on + int(mask[indices].sum()), kept + len(indices)
        all_on, everything = all_on + int(mask.sum()), everything + len(mask)
    assert kept_on / kept > 2 * all_on / everything, (kept_on / kept, all_on / everything)
