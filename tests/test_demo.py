"""scripts/demo.py: the grid it runs, and that tables come out of it."""

import importlib.util
import io
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from made_up import made_up
from rich.console import Console

from tango.inference.chat import Chat
from tango.motionqa.questions import read_questions
from tango.results.samples import read_folders
from tango.sweeps.cells import Evaluation
from tango.sweeps.sweep import Cell

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", REPOSITORY / "scripts" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def cell(framework: str, benchmark: str, given: Evaluation) -> Cell:
        method, ratio = given.method, given.ratio
        status = "import sys; sys.exit(1)" if method == "topk" else "pass"
        what = {"framework": framework, "benchmark": benchmark, "variant": given.variant}
        found = made_up(method, ratio, list(range(30)), 512 if ratio is None else 52, **what)
        name = "-".join(str(part) for part in (framework, method, ratio, given.variant) if part is not None)
        return Cell(name, name, [sys.executable, "-c", status], {}, given.samples, lambda run: found)

    monkeypatch.setattr(module, "lmms_cell", lambda folder, one, task, **_: cell("lmms-eval", task, one))
    monkeypatch.setattr(module, "vlmeval_cell", lambda folder, one, dataset: cell("VLMEvalKit", dataset, one))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data" / "videos").mkdir(parents=True)
    (tmp_path / "data" / "test.json").write_text(json.dumps([{}] * 40))
    (tmp_path / "settings.yaml").write_text("{}")
    return module


def run(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    given = ["--checkpoint", "model", "--data", "data", "--config", "settings.yaml", "--jobs", "4"]
    given += ["--task", "mine", "--dataset", "mine_8frame"]
    monkeypatch.setattr(sys, "argv", ["scripts/demo.py", *given, *words])
    return int(demo.main())


def test_the_grid_and_its_tables(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(demo, monkeypatch, "--baselines", "random") == 0
    readme = (tmp_path / "results" / "motionqa" / "README.md").read_text()
    for name in ("unpruned", "Tango 10 %", "Tango 15 %", "Tango 20 %", "random 10 %"):
        assert name in readme
    assert "made by: python scripts/demo.py --checkpoint model" in readme
    assert (tmp_path / "results" / "motionqa" / "accuracy.png").is_file()
    assert "gave the same answers and scores and kept the same tokens, sample by sample,** in all 4 cells" in readme
    found = pd.read_csv(tmp_path / "results" / "motionqa" / "accuracy.csv", comment="#")
    assert found["framework"].tolist() == ["lmms-eval"] * 5 + ["VLMEvalKit"] * 4  # the baseline only in the first
    read, _ = read_folders([tmp_path / "results" / "motionqa"])  # their samples are beside them
    assert len(read) == 9
    assert run(demo, monkeypatch, "--baselines", "random", "--no-samples") == 0
    assert not (tmp_path / "results" / "motionqa" / "samples.tar.xz").exists()


def test_one_framework(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(demo, monkeypatch, "--frameworks", "VLMEvalKit", "--baselines", "random", "--ratios", "0.1") == 0
    found = pd.read_csv(tmp_path / "results" / "motionqa" / "accuracy.csv", comment="#")
    assert found["framework"].tolist() == ["VLMEvalKit"] * 3
    with pytest.raises(SystemExit):
        run(demo, monkeypatch, "--frameworks", "another")


@pytest.mark.parametrize(("framework", "option"), [("lmms-eval", "task"), ("VLMEvalKit", "dataset")])
def test_other_data_need_a_name(
    framework: str, option: str, demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = {"task": demo.TASK, "dataset": demo.DATASET}[option]
    assert run(demo, monkeypatch, "--frameworks", framework, f"--{option}", default) == 2
    assert f"{framework}'s {default} does not read data; name with --{option} what does" in capsys.readouterr().out


def test_a_failed_cell_is_named_and_ends_with_an_error(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo, monkeypatch, "--ratios", "0.1") == 1
    assert "lmms-eval-topk-0.1: exit status 1" in capsys.readouterr().out
    assert "no result of lmms-eval-topk-0.1" in (tmp_path / "results" / "motionqa" / "README.md").read_text()


def test_what_is_missing_is_named(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo, monkeypatch, "--checkpoint", "nowhere") == 2
    assert "nowhere/config.json is missing" in capsys.readouterr().out


def test_all_methods_ablations_and_what_cannot_be(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model" / "config.json").write_text('{"text_config": {"num_hidden_layers": 4}}')
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "no-context.yaml").write_text("tango:\n  context_ratio: 0.0\n")
    words = ["--methods", "fastv", "random", "--ratios", "0.1", "0.6", "--baselines", "--ablations", "ablations"]
    assert run(demo, monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert "left out: FastV.retention_ratio = 0.1" in said and "above 0.500" in said
    readme = (tmp_path / "results" / "motionqa" / "README.md").read_text()
    for name in ("Tango 60 %", "random 10 %", "random 60 %", "FastV 60 %", "Tango 10 %, no-context"):
        assert name in readme
    assert "FastV 10 %" not in readme


def test_unknown_methods_are_named(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo, monkeypatch, "--methods", "tangoo") == 2
    assert "unknown methods: tangoo" in capsys.readouterr().out


def test_a_first_look_before_all_else(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its numbers are those of its answers, counted here; looked at again, nothing is computed again."""
    monkeypatch.setattr(demo, "FIRST", 6)
    data = REPOSITORY / "data" / "motionqa"
    given = {"checkpoint": str(REPOSITORY / "checkpoints/tango-tiny"), "data": data, "work": tmp_path, "ratios": [0.1]}
    said = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=200)
        demo.first_look(Namespace(**given, config=str(REPOSITORY / "configs/tango_tiny.yaml")), console)
        said.append([line for line in console.file.getvalue().splitlines() if " right, " in line])
        monkeypatch.setattr(Chat, "generate", lambda *_: pytest.fail("computed again"))
    assert said[0] == said[1] and len(said[0]) == 2
    right = [row["options"]["ABCD".index(row["answer"])] for row in read_questions(data)[:6]]
    for line, method, name in zip(said[0], ("vanilla", "tango"), ("unpruned", "Tango 10 %"), strict=True):
        (journal,) = (tmp_path / "first" / method).glob("*.jsonl")
        answers = [json.loads(text)["response"] for text in journal.read_text().splitlines()]
        score = sum(a == b for a, b in zip(answers, right, strict=True)) / 6
        assert line.startswith(f"  {name}: {100 * score:.1f} [") and "] % of 6 questions right, " in line
    assert "difference" in said[0][1] and "difference" not in said[0][0]
