"""Both frameworks ask a server, by their own clients and by ours, and get the answers of transformers.

The frameworks need an environment of their own: that of `make setup`, or what TANGO_PYTHON names.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_families
from engines import DATA, FRAMES, MODEL, ROOT, Reference, prompted
from tiny import save_qwen
from vllm_server import OPTIONS, serving

from tango.inference.video import read_video
from tango.motionqa.questions import prompt, read_questions
from tango.pruners import Tango

PYTHON = os.environ.get("TANGO_PYTHON") or str(ROOT / ".venv" / "bin" / "python")
COUNT = 18
METHOD = {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.1"}
TOLD = ["--trust-request-mm-kwargs", "--enable-prompt-tokens-details"]

pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason="no environment with the frameworks: make setup")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(MODEL, tmp_path_factory.mktemp("server") / "log", [*OPTIONS, *TOLD], **METHOD) as address:
        yield address


@pytest.fixture(scope="module")
def expected():
    """The answers of transformers by the questions' ids."""
    reference, answers = Reference(MODEL), {}
    for row in read_questions(ROOT / DATA)[:COUNT]:
        clip = read_video(ROOT / DATA / row["video"], FRAMES)
        text = prompted(["<video>\n", prompt(row["question"], row["options"])])
        tokens, _ = reference.answer(Tango(retention_ratio=0.1), text, [clip])
        answers[row["id"]] = reference.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return answers


def run(*words, **variables):
    """A command in the frameworks' environment, in the root of the checkout."""
    own = [*map(str, (ROOT, ROOT / "lmms-eval", ROOT / "VLMEvalKit"))]
    paths = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    environ = os.environ | offline | {"PYTHONPATH": paths} | variables
    subprocess.run([PYTHON, *words], cwd=ROOT, env=environ, check=True, timeout=1200)


def replies_of_lmms(folder):
    """By the questions' ids what was answered, from lmms-eval's own log of samples."""
    (file,) = folder.glob("*/*_samples_motionqa.jsonl")
    rows = map(json.loads, file.read_text().splitlines())
    return {row["accuracy"]["id"]: row["filtered_resps"].strip() for row in rows}


LMMS = ["-m", "lmms_eval", "--tasks", "motionqa", "--batch_size", "1", "--limit", str(COUNT), "--log_samples"]


def test_own_client_of_lmms_eval(url, expected, tmp_path):
    arguments = f"model_version=tango-tiny,base_url={url}/v1,api_key=none,pass_video_url=True,max_frames_num={FRAMES}"
    options = ["--output_path", str(tmp_path), "--model_args", f"{arguments},timeout=120,num_concurrent=4"]
    run(*LMMS, "--model", "openai", *options)
    assert replies_of_lmms(tmp_path) == expected


def test_own_client_of_vlmevalkit(url, expected, tmp_path):
    options = ["--base-url", f"{url}/v1", "--video-llm", "--max-tokens", "8", "--temperature", "0"]
    data = ["--data", f"MotionQA_{FRAMES}frame", "--limit", str(COUNT), "--work-dir", str(tmp_path)]
    run("VLMEvalKit/run.py", "--model", "tango-tiny", *options, *data)
    file = tmp_path / "tango-tiny" / f"tango-tiny_MotionQA_{FRAMES}frame_score.xlsx"
    code = "import pandas, sys; print(pandas.read_excel(sys.argv[1]).set_index('index')['prediction'].to_json())"
    said = subprocess.run([PYTHON, "-c", code, file], check=True, capture_output=True, text=True).stdout
    assert {key: str(reply).strip() for key, reply in json.loads(said).items()} == expected


@pytest.mark.parametrize("framework", ["lmms-eval", "VLMEvalKit"])
def test_sweep_with_servers_of_its_own(expected, tmp_path, framework):
    """One cell, whose server this starts; the answers, and tokens told with each."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "engine: vllm\nmethods: [tango]\nratios: [0.1]\n"
        f"frameworks: [{framework}]\nlimit: {COUNT}\noutput: {tmp_path / 'out'}\n"
        "vllm_options: [--enforce-eager, --dtype, float32, --max-model-len, '4096']\n"
    )
    run("-m", "tango.cli", "sweep", str(grid), "--cell", "2", TANGO_VLLM_PYTHON=sys.executable)
    (file,) = tmp_path.glob("out/tango-tiny/cells/*/run/*/*_efficiency.json")
    summary = json.loads(file.read_text())
    assert summary["n_failed"] == 0 and summary["model"]["engine"].startswith("vLLM 0.32.0")
    assert [record["response"] for record in summary["samples"]] == list(expected.values())
    tokens = [record["tokens"] for record in summary["samples"]]
    assert {(one["video_tokens_before"], one["video_tokens_after"]) for one in tokens} == {(512, 51)}


@pytest.mark.parametrize("family, framework", [
    ("qwen2_5_vl", "lmms-eval"), ("qwen3_vl", "VLMEvalKit"), ("internvl", "lmms-eval"),
])  # fmt: skip
def test_sweep_of_other_families(tmp_path, family, framework):
    """A model of random weights: with a server the answers, and the tokens kept, of the same sweep without one.

    Both frameworks choose sizes of Qwen's frames, and lmms-eval which frames; here other ones than vLLM would choose.
    """
    folder, replies, tokens = tmp_path / "models" / family, [], []
    if family == "internvl":
        tiny_families.save(family, folder, 32)
    else:
        vision = {"patch_size": 16} | ({"window_size": 64} if family == "qwen2_5_vl" else {})
        new = family == "qwen3_vl"
        save_qwen(folder, new, head=32, scale=6, pixels=96 * 96, video=12 if new else 1, widths={"vision": vision})
    exact = tmp_path / "exact.yaml"
    exact.write_text("tango:\n  exact_budget: true\n")  # as a server has it in any case
    for engine in ("transformers", "vllm\nvllm_options: [--enforce-eager, --max-model-len, '4096']"):
        grid, out = tmp_path / "grid.yaml", tmp_path / engine[:4]
        grid.write_text(
            f"engine: {engine}\nmodels: {folder}\nconfig: {exact}\nmethods: [tango]\nratios: [0.25]\nframes: 8\n"
            f"dtype: float32\nframeworks: [{framework}]\nlimit: {COUNT}\noutput: {out}\n"
        )
        run("-m", "tango.cli", "sweep", str(grid), "--cell", "2", TANGO_VLLM_PYTHON=sys.executable)
        (file,) = out.glob(f"{family}/cells/*/run/*/*_efficiency.json")
        summary = json.loads(file.read_text())
        assert summary["n_failed"] == 0
        replies.append([record["response"] for record in summary["samples"]])
        told = ("video_tokens_before", "video_tokens_after")
        tokens.append([[record["tokens"][name] for name in told] for record in summary["samples"]])
    assert tokens[0] == tokens[1]
    # vLLM holds back half letters at a reply's end (U+FFFD), so that space before them is at its end, and is cut off.
    assert [reply.rstrip("\ufffd").strip() for reply in replies[0]] == replies[1]
    assert len({*replies[0]}) > 3, "answers all alike"
