"""The cards of the shipped model and data: what they promise of loading and of numbers holds."""

import json
import re
from collections import Counter
from pathlib import Path

import av
import yaml
from datasets import load_dataset
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from tango.motionqa.questions import KINDS

ROOT = Path(__file__).parents[1]
MODEL, DATA = ROOT / "checkpoints" / "tango-tiny", ROOT / "data" / "motionqa"


def card(folder):
    """Its front matter, its text, and its code."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text, re.search("```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_model(monkeypatch):
    front, text, code = card(MODEL)
    assert front["library_name"] == "transformers" and front["license"] == "apache-2.0"
    monkeypatch.chdir(ROOT)
    names = {}
    exec(code, names)
    assert isinstance(names["model"], LlavaOnevisionForConditionalGeneration)
    assert type(names["processor"]) is type(AutoProcessor.from_pretrained(MODEL))
    config = names["model"].config
    vision, language = config.vision_config, config.text_config
    assert f"{vision.num_hidden_layers} layers, width {vision.hidden_size}" in text
    size, side = vision.image_size, vision.image_size // vision.patch_size
    assert f"{size} x {size} pixels in {side} x {side} patches" in text
    assert f"{language.num_hidden_layers} layers, width {language.hidden_size}, {language.vocab_size} tokens" in text


def test_the_data(monkeypatch, tmp_path):
    front, text, code = card(DATA)
    assert [kind["config_name"] for kind in front["configs"]] == ["default"]
    monkeypatch.chdir(ROOT)
    names = {}
    exec(code.replace('split="test"', f'split="test", cache_dir="{tmp_path}"'), names)
    rows = names["rows"]
    assert list(rows) == json.loads((DATA / "test.json").read_text())
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == {*rows.features}
    videos = {*rows["video"]}
    assert f"{len(rows)} questions of multiple choice about {len(videos)} made-up videos" in text
    assert videos == {f"videos/{number}.mp4" for number in range(120)}
    assert Counter(rows["kind"]) == dict.fromkeys(KINDS, 120) and Counter(rows["answer"]) == dict.fromkeys("ABCD", 180)
    assert all(f"`{kind}`" in text for kind in KINDS)
    for name in sorted(videos):
        with av.open(str(DATA / name)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 128, 128)
            assert (stream.frames, stream.average_rate) == (64, 8) and not container.streams.audio


def test_whole_datasets_load(tmp_path):
    assert {*load_dataset(str(DATA), cache_dir=str(tmp_path))} == {"test"}
