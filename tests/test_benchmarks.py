"""The scripts of benchmarks/ run at toy sizes, and their arithmetic is what torch counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import clips  # noqa: E402
import costs  # noqa: E402
import live_flops  # noqa: E402
import long_videos  # noqa: E402
import measure  # noqa: E402
import pruning  # noqa: E402
import reading  # noqa: E402
import scaling  # noqa: E402
import shapes  # noqa: E402
import tower_clips  # noqa: E402
import tower_reuse  # noqa: E402
import ttft  # noqa: E402
import vision  # noqa: E402

CPU = torch.device("cpu")
FRAMES = 4


@pytest.fixture(scope="module", params=shapes.SHAPES)
def toy(request):
    """A family, its toy model, and a prompt."""
    shape = shapes.SHAPES[request.param]
    model = shapes.build(shape, CPU, torch.float32, toy=True)
    inputs, tokens = shape.prompt(model.config, FRAMES, torch.float32)
    return shape, model, inputs, tokens


def run(script, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--device", "cpu", *map(str, arguments)])
    script.main()


def table(file: Path) -> list[list[str]]:
    """The cells of each row of a Markdown table, its header first."""
    lines = [line for line in file.read_text().splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@torch.no_grad()
def test_flops_are_those_that_torch_counts(toy):
    shape, model, inputs, _ = toy
    model.set_attn_implementation("eager")  # what the counter knows on every device
    counter = FlopCounterMode(display=False, depth=None)
    with counter:
        model(**inputs, logits_to_keep=1)
    model.set_attn_implementation("sdpa")
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    root, config, width = type(model).__name__, model.config, inputs["input_ids"].shape[1]
    if shape.llava:
        assert costs.siglip_tower(config.vision_config, FRAMES) == counts[f"{root}.model.vision_tower"]
        assert costs.projector(config, FRAMES) == counts[f"{root}.model.multi_modal_projector"]
    else:
        frames = int(inputs["video_grid_thw"][0, 0])
        rotation = counts.get(f"{root}.model.visual.rotary_pos_emb", 0)
        own = counts[f"{root}.model.visual"] - rotation
        assert costs.qwen_tower(config.vision_config, frames, *shape.grid(config)) == own
    text = config.text_config
    masked = (
        text.num_hidden_layers * costs.attention(width, width, text.num_attention_heads * costs.head_width(text)) // 2
    )
    rotation = counts.get(f"{root}.model.language_model.rotary_emb", 0)  # a matrix product in older transformers
    assert costs.decoder(text, width) + masked + rotation == sum(
        counts[name] for name in (f"{root}.model.language_model", f"{root}.lm_head")
    )


@torch.no_grad()
def test_flops_after_a_cache(toy):
    """Ten tokens after thirty, of which each sees all thirty, and half of the ten in the mean."""
    _, model, _, _ = toy
    language, text = model.model.language_model, model.config.text_config
    embeds = torch.randn(1, 40, text.hidden_size)
    model.set_attn_implementation("eager")
    cache = language(inputs_embeds=embeds[:, :30], use_cache=True).past_key_values
    with FlopCounterMode(display=False, depth=None) as counter:
        language(inputs_embeds=embeds[:, 30:], past_key_values=cache, use_cache=True)
    model.set_attn_implementation("sdpa")
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    rotation = sum(count for name, count in counts.items() if name.endswith(".rotary_emb"))
    masked = text.num_hidden_layers * costs.attention(10, 10, text.num_attention_heads * costs.head_width(text)) // 2
    logits = costs.matmul(1, text.hidden_size, text.vocab_size)
    assert costs.decoder(text, 10, cached=30) - logits + masked + rotation == counts["Global"]


@pytest.mark.parametrize("family", live_flops.FAMILIES)
def test_flops_of_a_stream(family, tmp_path, monkeypatch):
    """A hit's prefill is two operations a weight and token; of a clip attention counts too. Towers as by hand."""
    file = tmp_path / "flops.md"
    arguments = ["--toy", "--seconds", 61, "--families", family, "--output", file]
    monkeypatch.setattr(sys, "argv", ["live_flops.py", *map(str, arguments)])
    live_flops.main()
    header, row = table(file)
    cells = dict(zip(header, row, strict=True))
    assert (cells["stream, minutes"], cells["frames"]) == ("0 to 1", "60")
    assert int(cells["hits"]) + int(cells["misses"]) == 6
    layers, width, inner = 28, 3584, 18944
    weights = layers * (2 * width * width + 2 * width * 512 + 3 * width * inner)
    assert float(cells["TFLOP of a hit"]) == pytest.approx(2e-12 * weights * int(cells["of it new"]), rel=0.1)
    each = float(file.read_text().split(": tower ")[1].split(",")[0])
    count, tokens, tower = (60, 196, 0.642) if family == "llava_onevision" else (30, 252, 1.33)
    assert each == pytest.approx(tower, abs=0.005)
    prefill = 2e-12 * weights * count * tokens + 2e-12 * layers * width * (count * tokens) ** 2
    assert float(cells["generate(), unpruned"]) == pytest.approx(count * each + prefill, rel=0.05)


@torch.no_grad()
def test_flops_of_saliency(toy):
    shape, model, inputs, _ = toy
    _, saliency, _ = vision.stages(shape, model, inputs)
    with FlopCounterMode(display=False) as counter:
        saliency()
    config = model.config.vision_config
    if shape.llava:
        expected = costs.pooling_head(config, FRAMES)
    else:
        expected = costs.mean_query(config, FRAMES // 2, *shape.grid(model.config))
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("shape", shapes.SHAPES.values(), ids=shapes.SHAPES)
def test_saliency_is_a_small_part_of_the_true_tower(shape):
    config = shape.config()
    if shape.llava:
        share = costs.pooling_head(config.vision_config, 1) / costs.siglip_tower(config.vision_config, 1)
    else:
        grid = shape.grid(config)
        share = costs.mean_query(config.vision_config, 1, *grid) / costs.qwen_tower(config.vision_config, 1, *grid)
    assert 0 < share < 0.03


def test_distances_by_hand():
    # 2 frames of 10 places, 4 of them static; r' = 0.4 / (16 / 20) = 0.5: of 6 moving places a frame 3 stay, 1 of them
    # salient, so 2 x 5 are merged; of 4 static ones 2 stay, 1 salient, and 3 are merged. Then a frame of 10: 4 stay, 2
    # salient, 8 are merged.
    assert costs.context_distances([2, 1], [4, 0], 10, 7, 0.4) == 7 * (10**2 + 3**2 + 8**2)


def test_floor_is_the_larger_of_both():
    top = costs.Ceilings(flops=100.0, single=10.0, bandwidth=5.0)
    assert top.floor(costs.Cost(200, 10, 5)) == 3
    assert top.floor(costs.Cost(200, 10, 50)) == 10


def test_packing_is_that_of_the_processor():
    """Frames packed by clips.packed() are those of transformers' video processor, rescaling and normalising aside."""
    from transformers import Qwen2VLVideoProcessor

    frames = (60 * clips.video(3, 56, 84)).round().clamp(-99, 99) + 100
    processor = Qwen2VLVideoProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_sample_frames=False)
    expected = processor([frames.to(torch.uint8)], return_tensors="pt")
    packed, grid = clips.packed(frames, 14)
    assert torch.equal(packed, expected["pixel_values_videos"].float())
    assert [list(grid)] == expected["video_grid_thw"].tolist()


@torch.no_grad()
def test_stages(toy):
    _, model, inputs, tokens = toy
    witness = measure.Witness(ttft.Tango(retention_ratio=0.1))
    with ttft.attach(model, witness):
        model(**inputs, logits_to_keep=1)
    assert witness.tokens * sum(witness.sizes[0]) == tokens and 0 <= witness.static_share() <= 1
    with ttft.Tango(retention_ratio=0.1)(model):
        for memory in (False, True):
            stages = measure.Stages(model, memory)
            with stages.measuring():
                model(**inputs, logits_to_keep=1)
            assert set(stages.bytes if memory else stages.seconds) == set(measure.STAGES)
    assert all(value >= 0 for value in stages.bytes.values())


@pytest.mark.parametrize("family", shapes.SHAPES)
def test_ttft(family, monkeypatch, tmp_path):
    output = tmp_path / "ttft.md"
    arguments = ["--family", family, "--frames", 4, "--ratio", 0.2, "--repeats", 1, "--new-tokens", 2]
    run(ttft, monkeypatch, "--toy", *arguments, "--tower-reuse", "pixels", "--output", output)
    header, unpruned, pruned, reusing = table(output)
    assert header == list(ttft.COLUMNS) and len(unpruned) == len(pruned) == len(reusing) == len(header)
    assert int(pruned[2]) < int(unpruned[2]) and unpruned[header.index("x vanilla")] == "1.00"
    assert [row[header.index("of the tower")] for row in (unpruned, pruned)] == ["100 %"] * 2
    assert reusing[1] == "Tango, 0.2, tower_reuse=pixels"


def test_scaling(monkeypatch, tmp_path):
    output = tmp_path / "scaling.md"
    sizes = ["--frames", 4, 8, "--batch", 2, "--batch-frames", 4, "--unpruned-up-to", 4, "--repeats", 1]
    run(scaling, monkeypatch, "--toy", *sizes, "--output", output)
    rows = table(output)
    assert [row[:3] for row in rows[1:]] == [
        ["4", "1", "unpruned"], ["4", "1", "Tango, 0.1"], ["8", "1", "Tango, 0.1"], ["4", "2", "unpruned"],
        ["4", "2", "Tango, 0.1"],
    ]  # fmt: skip
    saved = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [set(row["floor"]) == set(row["seconds"]) for row in saved] == [True] * 5
    plot = output.with_suffix(".png")
    plot.unlink()
    run(scaling, monkeypatch, "--redraw", output.with_suffix(".json"))
    assert plot.stat().st_size > 10_000


def test_long_videos_and_vision(monkeypatch, tmp_path):
    short, long = (long_videos.measure("qwen3_vl", frames, CPU) for frames in (4, 8))
    assert (short["calls"], long["calls"]) == (1, 1) and long["features"] == 2 * short["features"]
    output = tmp_path / "vision.md"
    run(vision, monkeypatch, "--toy", "--families", "llava_video", "qwen2_5_vl", "--frames", 2, "--repeats", 1,
        "--output", output)  # fmt: skip
    header, *rows = table(output)
    assert [row[0] for row in rows] == ["LLaVA-Video-7B", "Qwen2.5-VL-7B"]
    for column in ("tower as it comes, ms", "tower, ms"):
        assert all(float(row[header.index(column)]) > 0 for row in rows)
    assert [row[header.index("equal")] for row in rows] == ["yes", ""]


def test_towers_of_clips():
    """A tenth of the noise is new in each frame, so of nine frames a fifth is computed in one of three layers."""
    pixels = tower_clips.frames_of(tower_clips.NOISE, 9, 196, 196, 14)
    cells = pixels.unfold(2, 14, 14).unfold(3, 14, 14).transpose(1, 3)
    new = (cells[1:] != cells[:-1]).flatten(3).any(3).float().mean()
    assert new == pytest.approx(0.1, abs=0.02)
    for family, tower in tower_clips.TOWERS.items():
        shape = shapes.SHAPES[family]
        model = shapes.build(shape, CPU, torch.float32, layers=3, toy=True)
        named, source, frames, work, *_, mean, low, kept = tower_clips.compared(
            tower, shape, model, tower_clips.NOISE, 9
        )
        assert (named, source, frames) == (tower, tower_clips.NOISE, "9")
        if shape.llava:
            assert float(work) == pytest.approx(1 - (1 - 0.2) / 3, abs=0.01)
        assert float(work) < 1 and -1 <= float(low) < float(mean) < 1 and 0 <= int(kept.removesuffix(" %")) <= 100


def test_pruning(monkeypatch, tmp_path):
    """Tango, the oracle and another commit in turns; what a turn of them cannot do is in the table."""
    output = tmp_path / "pruning.md"
    turns = []

    def child(which, kind, frames, runs, folder=pruning.ROOT):
        turns.append((which, kind, frames, runs, folder))
        if which == "oracle" and frames == 9:
            return {"error": "too little"}
        return {"seconds": [1.0 + len(turns)] * runs, "mib": 10.0 + len(turns), "segments": 3}

    monkeypatch.setattr(pruning, "in_child", child)
    monkeypatch.setattr(pruning, "check", lambda kind, video: (None, f"{kind}, {len(video[0])} frames checked"))
    sizes = ["--frames", 8, 9, 300, "--oracle-frames", 8, 9, "--runs", 2, "--turns", 2]
    run(pruning, monkeypatch, *sizes, "--output", output)
    assert turns[:4] == [("tango", "long", 8, 2, pruning.ROOT), ("oracle", "long", 8, 2, pruning.ROOT)] * 2
    header, both, failed, alone, *more = table(output)
    assert {len(line) for line in table(output)} == {len(header)} and [line[0] for line in more] == ["ordinary"] * 3
    assert both == ["long", "8", "3", "3.00 (2.00 to 4.00)", "13", "4.00 (3.00 to 5.00)", "14", "1.3"]
    assert failed[5:] == ["too little", "", ""] and alone[5:] == ["not run", "", ""]
    assert [runs for *_, frames, runs, _ in turns if frames == 300] == [1] * 4
    assert "checked first: long, 8 frames checked; ordinary, 8 frames checked; long, 9" in output.read_text()

    turns.clear()
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    run(pruning, monkeypatch, "--frames", 8, "--runs", 1, "--turns", 2, "--against", tmp_path, "--output", output)
    assert turns[2] == ("tango", "long", 8, 1, tmp_path) and len(turns) == 12
    header, line, _ = table(output)
    commit = header[7].removesuffix(", s")
    assert int(commit, 16) and header[8:] == [
        f"{commit}, MiB",
        "times faster than oracle",
        f"times faster than {commit}",
    ]
    assert line[3] == "3.50 (2.00 to 5.00)" and line[7:] == ["5.50 (4.00 to 7.00)", "16", "1.3", "1.6"]


def test_what_is_another_problem_is_refused():
    video = pruning.long_segment(8)
    pruning.refuse_easier(video, [8])
    with pytest.raises(SystemExit, match="not the worst case"):
        pruning.refuse_easier(video, [4, 4])
    video[0][:, 3] = 1
    with pytest.raises(SystemExit, match="1 static places"):
        pruning.refuse_easier(video, [8])


@pytest.mark.parametrize("kind", pruning.VIDEOS)
def test_tokens_are_the_oracles_before_anything_is_timed(kind, monkeypatch):
    video = pruning.VIDEOS[kind](3, dim=48)
    pruned, text = pruning.check(kind, video)
    assert "same tokens" in text and pruned.segment_sizes.sum() == 3
    right = pruning.Oracle(**pruning.SETTINGS[kind]).prune(*video)
    for wrong, message in ((right[0].flip(0), right[1], right[2]), "other tokens"), (
        (right[0], right[1] + 1e-3, right[2]), "features differ by 1.0e-03"
    ):  # fmt: skip
        monkeypatch.setattr(pruning.Oracle, "prune", lambda self, *video, wrong=wrong: wrong)
        with pytest.raises(SystemExit, match=f"{kind}, 3 frames: {message}"):
            pruning.check(kind, video)


@pytest.mark.parametrize(("kind", "segments"), [("long", "1"), ("ordinary", "5")])
def test_a_row_of_the_table_of_a_gpu(kind, segments, monkeypatch):
    """With the CPU in place of the GPU: all but clock, memory and count of waits."""
    times = iter([[60.0], [5.0], [7.0]])
    monkeypatch.setattr(pruning, "CUDA", "cpu")
    monkeypatch.setattr(pruning, "CUDA_DIM", 448)
    monkeypatch.setattr(pruning, "timed", lambda prune, runs: (prune() and next(times), 12.0))
    monkeypatch.setattr(pruning, "waits", lambda prune: 3)
    row = [cell.strip() for cell in pruning.cuda_row(kind, 8, 1).strip("|").split("|")]
    assert row == [kind, "8", segments, "5.00 (5.00 to 5.00)", "3", "12", "60.0", "12.0"]
    monkeypatch.setattr(pruning, "CHECKED_FRAMES", 7)
    assert pruning.cuda_row(kind, 8, 1).endswith("7.00 (7.00 to 7.00) | 3 | 12 | not run |  |")
    monkeypatch.setattr(pruning, "CHECKED_FRAMES", 8)
    kept = []
    monkeypatch.setattr(pruning.Oracle, "prune", lambda self, *video: (torch.arange(3), None, kept))
    with pytest.raises(SystemExit, match="other tokens than the oracle's"):
        pruning.cuda_row(kind, 8, 1)


@pytest.mark.parametrize(("which", "kind"), [("tango", "ordinary"), ("oracle", "long")])
def test_a_turn_of_pruning(which, kind):
    result = pruning.in_child(which, kind, 8, 1)
    assert len(result["seconds"]) == 1 and result["seconds"][0] > 0 and result["mib"] > 1 and result["segments"] > 0


def test_a_turn_of_another_commit(tmp_path):
    """Measured is the package in that folder."""
    (tmp_path / "tango").mkdir()
    (tmp_path / "tango/__init__.py").write_text("raise RuntimeError('another tango')")
    assert pruning.in_child("tango", "long", 8, 1, tmp_path) == {"error": "RuntimeError: another tango"}


def test_a_tower_that_reuses(tmp_path, monkeypatch):
    """Of one video: gone on with, the answers stay; FLOPs are those of the parts; the table has all rows."""
    answers = tmp_path / "answers.json"
    arguments = ["tower_reuse.py", "--videos", "1", "--answers", str(answers), "--methods", "unpruned", "--few"]
    monkeypatch.setattr(sys, "argv", arguments)
    tower_reuse.main()
    stored = json.loads(answers.read_text())
    monkeypatch.setattr(sys, "argv", [*arguments, "--write", str(tmp_path)])
    tower_reuse.main()
    assert json.loads(answers.read_text()) == stored
    rows = table(tmp_path / "README.md")
    assert [row[1] for row in rows[1:]] == [row["reuse"] for row in stored["rows"]]
    assert rows[1][2] == "1.00" and all(float(row[2]) < 1 for row in rows[2:])
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    qwen = ["--model", str(tower_reuse.ROOT / "checkpoints/tango-tiny-qwen"), "--answers", str(tmp_path / "qwen.json")]
    monkeypatch.setattr(sys, "argv", ["tower_reuse.py", "--videos", "2", "--methods", "unpruned", "--few", *qwen])
    tower_reuse.main()
    found = json.loads((tmp_path / "qwen.json").read_text())
    assert all(len(row["right"]) == len(found["kinds"]) == 12 for row in found["rows"])
    whole, *reused = (row["computed"] for row in found["rows"])
    assert whole == [1.0, 1.0] and all(share < 1 for row in reused for share in row)
    whole, half = (tower_reuse.first_token_7b(computed, 0.1) for computed in (1.0, 0.5))
    assert 20 < 2 * (whole - half) < 21 and 111 < tower_reuse.first_token_7b(1.0, 1.0) < 112


def test_reading_a_clip(tmp_path, monkeypatch):
    """A row a way of decoding; other frames than the first way's are refused; shares follow from the GPU's table."""
    clip = BENCHMARKS.parent / "tests" / "data" / "video" / "bt709.mp4"
    output = tmp_path / "reading.md"
    arguments = ["reading.py", str(clip), "--as-is", "--frames", "3", "32", "--repeats", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    reading.main()
    header, *rows = table(output)
    assert [(row[2], row[3]) for row in rows] == [(frames, way) for frames in ("3", "32") for way in reading.WAYS]
    total = header.index("sum, ms")
    for row in rows:
        parts, whole = [float(cell) for cell in row[4:total]], float(row[total])
        assert all(part > 0 for part in parts) and abs(sum(parts) - whole) < 0.2
        shares = [whole / (whole + 1e3 * reading.gpu_seconds()[32, name]) for name in reading.GPU_ROWS]
        assert float(row[total + 1]) > 0
        if row[2] == "32":
            assert [float(text.split()[0]) for text in row[total + 2 :]] == pytest.approx(
                [100 * x for x in shares], abs=1
            )
        else:
            assert row[total + 2 :] == ["", ""]
    frames = iter(range(9))
    monkeypatch.setattr(reading, "read", lambda *_: ({}, next(frames)))
    with pytest.raises(SystemExit, match="other frames"):
        reading.main()
