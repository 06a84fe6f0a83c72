"""Estimates of cells: against operations counted by hand, by benchmarks/costs.py, and by torch as a model runs."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen3VLConfig, SiglipVisionConfig

from tango.cli import main
from tango.inference.checkpoints import load
from tango.sweeps import estimate as module
from tango.sweeps.estimate import PREFILL_RATE, PUBLISHED, Model, config_here, disk, estimate, model_of
from tango.sweeps.sweep import Cell

ROOT = Path(__file__).parents[2]
TINY = ROOT / "checkpoints" / "tango-tiny"
ONEVISION = PUBLISHED["llava-onevision-qwen2-7b"]


def costs() -> Any:
    """benchmarks/costs.py, which counts from transformers' configurations."""
    spec = importlib.util.spec_from_file_location("costs", ROOT / "benchmarks" / "costs.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["costs"] = found
    spec.loader.exec_module(found)
    return found


def cell(ratio: float | None, samples: int = 100, benchmark: str = "videomme", framework: str = "lmms-eval") -> Cell:
    what = {"framework": framework, "model": "m", "benchmark": benchmark, "method": "tango", "ratio": ratio}
    return Cell("a", "a", [], {}, samples, lambda run: {}, what)


def test_llava_onevision_7b_by_hand() -> None:
    model = model_of(ONEVISION, 32)
    # SigLIP: 26 layers, 729 patches, width 1152, MLP 4304; four matrices of attention, two of the MLP.
    layer = 2 * 729 * (4 * 1152**2 + 2 * 1152 * 4304) + 4 * 729**2 * 1152
    assert model.frames * model.tower == pytest.approx(32 * (26 * layer + 2 * 729 * 588 * 1152))
    assert model.projector == 2 * 729 * (1152 * 3584 + 3584 * 3584)
    # Qwen2-7B: 28 layers, width 3584, keys and values of 4 heads of 128, gated MLP of 18944.
    weights = 2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944
    tokens = 32 * 196 + 1 + 69
    by_hand = 28 * (2 * tokens * weights + 4 * 3584 * tokens**2 / 2) + 2 * 3584 * 152064
    assert model.decoder.prefill(model.prompt(None, 69)) == pytest.approx(by_hand)
    # Published elsewhere for 32 frames: 20.5 TFLOP of tower; 90.7 of prefill, at 10 % of the tokens 9.1.
    assert model.frames * model.tower == pytest.approx(20.5e12, rel=0.01)
    assert model.vision == pytest.approx(20.5e12, rel=0.05)  # with the projector
    assert model.decoder.prefill(model.prompt(None, 69)) == pytest.approx(90.7e12, rel=0.01)
    assert model.decoder.prefill(model.prompt(0.1, 69)) == pytest.approx(9.1e12, rel=0.02)
    # With the 150 tokens of text that estimates take, 2 % and 13 % more.
    assert model.decoder.prefill(model.prompt(None)) == pytest.approx(90.7e12, rel=0.02)
    assert model.decoder.prefill(model.prompt(0.1)) == pytest.approx(9.1e12 * 1.127, rel=0.01)
    # 8.03 billion numbers of two bytes; keys and values of 6,423 tokens.
    gigabytes, keys, _ = model.memory(None)
    assert gigabytes == pytest.approx(2 * 8.03, rel=0.01)
    assert keys == pytest.approx(2e-9 * 28 * 2 * 512 * 6423)
    one = 28 * (2 * weights + 4 * 3584 * (6423 + 2)) + 2 * 3584 * 152064  # four tokens, the first of prefill
    assert model.decoder.decoding(6423, 4) == pytest.approx(3 * one)


def test_towers_and_decoders_as_the_benchmarks_count_them() -> None:
    count = costs()
    siglip = SiglipVisionConfig(**module.SO400M_CONFIG | {"num_hidden_layers": 26})
    video = model_of(PUBLISHED["llava-video-7b"], 64)
    assert video.frames * video.tower == pytest.approx(count.siglip_tower(siglip, 64))
    assert (video.tokens, video.newlines) == (13 * 13, 64 * 13)
    qwen = model_of(PUBLISHED["qwen2.5-vl-7b"], 64)
    config = Qwen2_5_VLConfig(**{k: PUBLISHED["qwen2.5-vl-7b"][k] for k in ("text_config", "vision_config")})
    grid = (48, 64)  # patches of 768 tokens
    assert (qwen.frames, qwen.tokens, qwen.patches) == (32, 768, 48 * 64)
    assert qwen.vision == pytest.approx(count.qwen_tower(config.vision_config, 32, *grid), rel=0.01)
    assert qwen.decoder.prefill(5000) == pytest.approx(count.decoder(config.text_config, 5000), rel=1e-9)
    newest = Qwen3VLConfig()
    raw = newest.to_dict() | {"architectures": ["Qwen3VLForConditionalGeneration"]}
    three = model_of(raw, 16)
    assert three.frames * (three.tower + three.projector) == pytest.approx(
        count.qwen_tower(newest.vision_config, 8, *grid), rel=0.01
    )
    assert three.decoder.prefill(3000) == pytest.approx(count.decoder(newest.text_config, 3000), rel=1e-9)


def test_experts_count_where_they_are_used() -> None:
    raw = AutoConfig.for_model("qwen3_vl_moe").to_dict() | {"architectures": ["Qwen3VLMoeForConditionalGeneration"]}
    text = raw["text_config"]
    decoder = model_of(raw, 8).decoder
    one = 3 * text["hidden_size"] * text["moe_intermediate_size"]
    experts = text.get("num_experts") or text["num_local_experts"]  # by the version of transformers
    assert experts == 60
    assert decoder.weights - decoder.used == (experts - text["num_experts_per_tok"]) * one


def test_operations_as_torch_counts_them() -> None:
    """The shipped model, video and all; torch counts whole attention where it is causal, which is half of it here."""
    found = model_of(json.loads((TINY / "config.json").read_bytes()), 8)
    checkpoint = load(str(TINY), device="cpu", attn_implementation="eager")
    config = checkpoint.model.config
    ids = torch.cat([torch.full((1, 513), config.video_token_id), torch.full((1, 40), 7)], dim=1)
    pixels = torch.zeros(1, 8, 3, 128, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        checkpoint.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=pixels, logits_to_keep=1
        )
    prompt = found.prompt(None, 40)
    assert prompt == 553
    other_half = 4 * found.decoder.layers * found.decoder.heads * prompt**2 / 2
    assert counter.get_total_flops() == pytest.approx(
        found.vision + found.decoder.prefill(prompt) + other_half, rel=0.01
    )
    assert found.decoder.parameters + found.vision_weights == pytest.approx(
        checkpoint.described["parameters"], rel=0.04
    )
    assert found.bytes == 4


def test_original_and_converted_checkpoints_are_the_same_model(tmp_path: Path) -> None:
    text = {name: value for name, value in ONEVISION.items() if not name.startswith("mm_")}
    converted = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"num_hidden_layers": 26},
    }
    assert model_of(converted, 32) == model_of(ONEVISION, 32)
    video = {**converted, "architectures": ["LlavaVideoForConditionalGeneration"]}
    assert model_of(video, 64) == model_of(PUBLISHED["llava-video-7b"], 64)
    (tmp_path / "config.json").write_text(json.dumps(converted))
    assert config_here(str(tmp_path)) == converted
    assert config_here("lmms-lab/llava-onevision-qwen2-7b-ov") == ONEVISION
    assert config_here("owner/unheard-of") is None


def test_hours_of_a_cell() -> None:
    model = model_of(ONEVISION, 32)
    # What the rates were worked out from comes out again: .5628 s to the first token, three more of 1 / 83.66 s; and a
    # whole run of 2700 questions on 8 GPUs takes the published 1315 s, with the two minutes until it starts.
    assert model.gpu_seconds(0.1, PREFILL_RATE) == pytest.approx(0.5628 + 4 / 83.66, rel=1e-4)
    whole = estimate(cell(0.1, 2700), "m", model, 8)
    generate = 2700 / 8 * model.gpu_seconds(0.1, PREFILL_RATE)
    assert 3600 * whole.hours == pytest.approx(120 + generate + 1315.02 - 198.31)
    assert whole.gpu_hours == pytest.approx(8 * whole.hours) and whole.prompt == 778
    assert whole.computing == pytest.approx(8 * generate / 3600)
    fast, slow = (estimate(cell(None), "m", model, 1, tflops) for tflops in (400.0, 100.0))
    assert slow.computing == pytest.approx(4 * fast.computing)  # all of a GPU in proportion
    assert slow.hours - fast.hours == pytest.approx(slow.computing - fast.computing)  # and reading is not
    clips, films = (estimate(cell(None, benchmark=name), "m", model, 1) for name in ("mvbench", "mlvu_dev"))
    assert films.hours - clips.hours == pytest.approx(100 * 0.9 * module.READING_S / 3600)
    pruned, unpruned = (estimate(cell(ratio), "m", model, 1) for ratio in (0.1, None))
    assert pruned.memory < unpruned.memory == pytest.approx(sum(model.memory(None)))


def test_disk_by_the_hub_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Hub:
        def repo_info(self, name: str, repo_type: str, **_: Any) -> Any:
            asked.append(name)
            if name == "owner/gone":
                raise httpx.ConnectError("no such host")
            return SimpleNamespace(siblings=[SimpleNamespace(size=3_000_000_000), SimpleNamespace(size=None)])

    monkeypatch.setattr(module, "HfApi", Hub)
    model = model_of(ONEVISION, 32)
    cells = [cell(None), cell(0.1), cell(None, benchmark="Video-MME_32frame", framework="VLMEvalKit")]
    sources: dict[str, Model | None] = {"owner/model": model, str(TINY): None}
    found = {name: (size, known) for name, size, known in disk(cells, sources)}
    assert found["owner/model"] == (3.0, "the hub says so")
    assert found["lmms-eval/Video-MME"][0] == found["lmms-lab/Video-MME"][0] == 6.0  # archives and the same unpacked
    assert found[str(TINY)] == (sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file()) / 1e9, "here")
    asked.clear()
    alone = {name: (size, known) for name, size, known in disk(cells, {"owner/gone": model, "owner/model": model})}
    assert asked == ["owner/gone"]  # a hub that does not answer is not waited for again
    assert alone["owner/model"] == alone["owner/gone"] == (pytest.approx(16.06, rel=0.01), "its weights, counted")
    assert alone["lmms-lab/Video-MME"][0] == 230 and alone["lmms-lab/Video-MME"][1].startswith("assumed")
    assert len(alone) == 4


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--ratio", "0.1", "--limit", "30", "--framework", "lmms-eval", "--framework", "VLMEvalKit"]
    assert main([*words, "--dry-run", "--estimate", "--json", "--tflops", "0.05"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["questions"]) for one in told["cells"]] == [
        ("motionqa-vanilla", 30), ("motionqa-tango-0.1", 30),
        ("vlmeval-MotionQA_8frame-vanilla", 30), ("vlmeval-MotionQA_8frame-tango-0.1", 30),
    ]  # fmt: skip
    assert told["total"]["gpu_hours"] == pytest.approx(sum(one["gpu_hours"] for one in told["cells"]))
    assert {one["name"] for one in told["disk"]} == {"checkpoints/tango-tiny", "MotionQA"}
    assert told["units"] == dict.fromkeys(("vision", "prefill", "decoding"), "TFLOP") | {
        "computing": "GPU h", "hours": "h", "gpu_hours": "h", "memory": "GB"
    }  # fmt: skip
    assert "nothing was measured" in told["notes"][0] and "0.05 TFLOP/s" in told["notes"][0]
    assert main([*words, "--dry-run", "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "tango-tiny: motionqa-tango-0.1" in said and "disk in all:" in said and "lmms_eval" not in said
    assert main([*words, "--estimate"]) == 2 and "--dry-run" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--tflops", "9"]) == 2


def test_a_model_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--framework", "VLMEvalKit", "--model", "owner/name", "--dry-run", "--estimate", "--json"]
    main(words)
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == [] and told["notes"][1] == "no estimate for name: its config.json is not here"


@pytest.mark.parametrize(
    "model_type, kind",
    [
        ("internvl", "InternVLForConditionalGeneration"),
        ("video_llama_3", "VideoLlama3ForConditionalGeneration"),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
        ("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    ],
)
def test_a_family_that_is_not_counted(model_type: str, kind: str) -> None:
    raw = AutoConfig.for_model(model_type).to_dict() | {"architectures": [kind]}
    with pytest.raises(ValueError, match=f"not of {kind}"):
        model_of(raw, 8)


def test_a_config_that_says_too_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = json.loads((TINY / "config.json").read_text())
    del raw["text_config"]["num_hidden_layers"]
    with pytest.raises(ValueError, match=r"its config\.json lacks 'num_hidden_layers'"):
        model_of(raw, 8)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    words = ["sweep", "--framework", "VLMEvalKit", "--model", str(tmp_path), "--dry-run", "--estimate", "--json"]
    main(words)
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == []
    assert told["notes"][1] == f"no estimate for {tmp_path.name}: its config.json lacks 'num_hidden_layers'"
