"""The examples of docs/architecture.md as somebody would follow them: a method, a family and a benchmark are added.

Method and family go into a copy of tango/, as the page says: their file and their lines elsewhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def example(name):
    """The code block whose first line names this file."""
    (block,) = re.findall(rf"```\w+\n# {re.escape(name)}\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.mark.parametrize("name", ["tango/pruners/largest_norm.py", "tango/models/llava_next_video.py"])
def test_examples_pass_what_every_file_has_to(name):
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--stdin-filename", name, "-"]
        done = subprocess.run(command, cwd=ROOT, input=example(name), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def run(folder, *words, **variables):
    """A command of this Python that must end well, in a folder whose tango/ it imports."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    for name in ("checkpoints", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "tango", tmp_path / "tango", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def change(file, before, after):
    """Edit a file of the copy; what is replaced must be there."""
    source = file.read_text(encoding="utf-8")
    assert before in source
    file.write_text(source.replace(before, after, 1), encoding="utf-8")


USE_METHOD = """
import torch, tango
from tango.pruners import REGISTRY
features = torch.randn(4, 16, 8)
pruned = REGISTRY["largest_norm"](retention_ratio=0.25).prune(features)
largest = features.flatten(0, 1).norm(dim=-1).topk(16).indices.sort().values
print(tango.__file__, pruned.indices.equal(largest), pruned.features.equal(features.flatten(0, 1)[largest]))
"""


def test_a_method(copy):
    (copy / "tango" / "pruners" / "largest_norm.py").write_text(example("tango/pruners/largest_norm.py"))
    entries = copy / "tango" / "pruners" / "__init__.py"
    change(entries, "from tango.pruners.", "from tango.pruners.largest_norm import LargestNorm\nfrom tango.pruners.")
    change(entries, "METHODS = (", "METHODS = (LargestNorm,")
    assert run(copy, "-c", USE_METHOD).split() == [str(copy / "tango" / "__init__.py"), "True", "True"]
    words = ["data/motionqa/videos/1.mp4", "What colour is the square?", "--method", "largest_norm", "--ratio", "0.25"]
    asked = run(copy, "-m", "tango.cli", "ask", *words, "--model", "checkpoints/tango-tiny", "--json")
    answer = json.loads(asked)["answers"][1]
    assert answer["name"] == "largest_norm 0.25" and answer["tokens"]["video_tokens_after"] == 128


USE_FAMILY = """
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration
from tango import Tango
from tango.pruners import Uniform
torch.manual_seed(0)
size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlavaNextVideoConfig(
    vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **size),
    text_config=LlamaConfig(vocab_size=64, initializer_range=0.4, pad_token_id=0, **size),
    video_token_index=60, image_token_index=61,
)
model = LlavaNextVideoForConditionalGeneration(config).eval()
ids = torch.tensor([[1, 2, *[60] * 16, 3, 4]])  # four frames of 2 x 2 tokens
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": torch.randn(1, 4, 3, 32, 32)}
answers = [model.generate(**inputs, max_new_tokens=6)]
for ratio in (1, 0.5):
    with Uniform(retention_ratio=ratio)(model) as session:
        answers.append(model.generate(**inputs, max_new_tokens=6))
    print(session.videos[0].tokens_before, session.videos[0].tokens_after)
print(answers[0].equal(answers[1]), answers[0].equal(answers[2]))
try:
    Tango()(model).__enter__()
except ValueError as error:
    print(error)
"""


def test_a_family(copy):
    (copy / "tango" / "models" / "llava_next_video.py").write_text(example("tango/models/llava_next_video.py"))
    line, _ = re.search(r'`("LlavaNext\w+": "([\w.]+)")`', PAGE).groups()
    change(copy / "tango" / "models" / "__init__.py", "\nFAMILIES = {\n", f"\nFAMILIES = {{\n    {line},\n")
    whole, half, same, refused = run(copy, "-c", USE_FAMILY).splitlines()
    assert (whole, half, same) == ("16 16", "16 8", "True False")  # a ratio of 1 is the model as it is
    assert refused == "tango needs saliency; LLaVA-NeXT-Video has features alone"


def test_a_benchmark(tmp_path):
    def here(name):
        return example(f"build/events/{name}").replace("build/events", str(tmp_path))

    exec(compile(here("events.json"), "docs/architecture.md", "exec"), {})
    (tmp_path / "events.yaml").write_text(here("events.yaml"))
    (command,) = re.findall(r"^WRAPPER=.*?logs$", PAGE, re.DOTALL | re.MULTILINE)
    words = command.replace("\\\n", " ").replace("build/events", str(tmp_path)).split()
    variables = dict(word.split("=", 1) for word in words[:2])
    run(ROOT, *words[3:], "--device", "cpu", **variables | {"TANGO_ARGS": "retention_ratio=1"})
    (results,) = (tmp_path / "logs").glob("*/*_results.json")
    assert json.loads(results.read_text())["results"]["events"]["exact_match,none"] == 1
