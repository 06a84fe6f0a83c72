"""The scripts behind front.md of results/motionqa_all/ and results/calibrate/, on four videos: answers as ordinary runs
have them, each half its own videos, and tables that say what was answered.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tango.results.statistics import wilson
from tango.runs.settings import from_environment

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import calibrate_motionqa  # noqa: E402
import front  # noqa: E402
import front_tables  # noqa: E402
import reconstruction  # noqa: E402

VIDEOS = ("0", "1", "10", "100")  # as names are sorted
ARGUMENTS = ["--methods", "tango", "divprune", "--ratios", "0.1", "0.3", "--positions", "both"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of both halves; the folder of the data beside them."""
    folder = tmp_path_factory.mktemp("front")
    data = folder / "data"
    (data / "videos").mkdir(parents=True)
    rows = json.loads((ROOT / "data/motionqa/test.json").read_text())
    rows = [row for row in rows if row["id"].split("-")[0] in VIDEOS]
    (data / "test.json").write_text(json.dumps(rows))
    for name in VIDEOS:
        shutil.copy(ROOT / f"data/motionqa/videos/{name}.mp4", data / "videos")
    run(front, folder, "--half", "development", "--vary", "no segments", *ARGUMENTS)
    run(front, folder, "--half", "held", *ARGUMENTS)
    return folder


def run(script: object, folder: Path, *arguments: str) -> None:
    words = ["--checkpoint", str(ROOT / "checkpoints/tango-tiny"), "--data", str(folder / "data")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["front.py", *words, "--work", str(folder / "work"), *arguments])
        script.main()


def test_halves_and_answers(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [json.loads(file.read_text()) for file in (work / "work/tango-tiny/8").glob("*.json")]
    assert len(files) == (1 + 8 + 4) + (1 + 8)
    for file in files:
        videos = {key.split("-")[0] for key in file["answers"]}
        assert videos == ({"0", "10"} if file["half"] == "development" else {"1", "100"}) and len(file["answers"]) == 12
        whole = file["settings"]["retention_ratio"] == 1
        assert (file["kept"] == 1) == whole == all(kl == 0 for _, _, kl in file["answers"].values())
    run(front, work, "--limit", "1", "--check", "6", "--methods", "tango", "--ratios", "0.1", "--positions", "both")
    said = capsys.readouterr().out
    assert said.count("6 of 6 answers are those of the ordinary run") == 3, said
    run(front, work, *ARGUMENTS)
    assert "%" not in capsys.readouterr().out, "finished settings are computed again"
    with pytest.raises(SystemExit, match="no segmants"):
        run(front, work, "--vary", "no segmants")


def test_tables(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = work / "tables"
    words = ["--work", str(work / "work/tango-tiny"), "--output", str(output), "--sibling", "no segments"]
    monkeypatch.setattr(sys, "argv", ["front_tables.py", *words])
    front_tables.main()
    text = (output / "front.md").read_text()
    files = [json.loads(file.read_text()) for file in (work / "work/tango-tiny/8").glob("divprune-0.1-*.json")]
    files = [file for file in files if not file["settings"]["keep_positions"]]
    right = [one[0] for file in files for one in file["answers"].values()]
    kept = sum(file["kept"] for file in files) / 2
    assert len(right) == 24
    cell = f"| DivPrune | {wilson(sum(right) / 24, 24).text()} ({100 * kept:.1f}) |"
    assert cell in text.split("## The development half")[0]
    assert "Tango, no segments" in text.split("## The development half")[1]
    assert (output / "front.png").stat().st_size > 10_000
    assert len((output / "front.csv").read_text().splitlines()) == 1 + 13 + 9 + 9


def test_the_sibling_is_the_change_that_was_tried() -> None:
    """configs/tango_one_segment.yaml is what results/motionqa_all/reading.md says of it."""
    tried = front.VARIATIONS["no segments, context_ratio 0.6, received attention"]
    environment = {"WRAPPER": "tango", "TANGO_CONFIG": str(ROOT / "configs/tango_one_segment.yaml")}
    assert from_environment(environment).pruner == front.REGISTRY["tango"](keep_positions=True, **tried)


def test_choices_with_and_without_labels(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_motionqa, "CLIPS", (2,))
    words = ["--work", str(work / "work/tango-tiny/8"), "--output", str(work / "calibrate"), "--draws", "5"]
    monkeypatch.setattr(sys, "argv", ["calibrate_motionqa.py", *words])
    calibrate_motionqa.main()
    text = (work / "calibrate/motionqa.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [row.split("|")[1:3] for row in rows] == [[f" {t} % ", " 2 "] for t in (2, 5, 10)]
    assert "2 methods at 0.1, 0.3; 4 videos" in text

    values = {0.1: 0.96, 0.2: 0.90, 0.3: 0.97}
    assert calibrate_motionqa.chosen("tango", values, 0.05) == 0.3
    assert calibrate_motionqa.chosen("tango", values, 0.1) == 0.1
    assert calibrate_motionqa.chosen("tango", values, 0.01) is None


def test_what_kept_tokens_explain() -> None:
    """By hand: 0, 1, 10 and 11 are 2 (30.25 + 20.25) = 101 from their mean; 0 and 10 leave 1 + 1 of it, two means 1."""
    tokens = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert reconstruction.unexplained(tokens, tokens) == 0
    assert reconstruction.unexplained(tokens, tokens[[0, 2]]) == pytest.approx(2 / 101)
    assert reconstruction.unexplained(tokens, reconstruction.k_means(tokens, 2)) == pytest.approx(1 / 101)
    assert reconstruction.windows(ROOT / "data/motionqa/videos/0.mp4", 4.0)[:2] == [(0.0, 4.0), (4.0, 8.0)]
