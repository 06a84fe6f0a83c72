"""docs/reproduce.md, executed: its own commands, on small stand-ins in the published layouts, from a hub on localhost,
in both frameworks. Only where the large disk is and the size of the grids are other than on the page.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import stand_ins
from hub import serve

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
TOKEN = "hf_" + "notARealToken1234567"
# What each sweep of the page is cut down to, with one retention ratio and 8 frames.
BENCHMARKS = {
    "llava_onevision": "[MVBench]",  # and Video-MME in the page's trial
    "llava_video": "[LongVideoBench]",
    "qwen2_5_vl": "[MLVU]",
    "profile": "[Video-MME]",
}


def commands(heading: str) -> str:
    """The bash blocks of a section, but for the line that asks a person for a token."""
    section = re.search(rf"^## \d\. {heading}.*?(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None, heading
    blocks = "".join(re.findall(r"```bash\n(.*?)```", section[0], re.DOTALL))
    return "\n".join(line for line in blocks.splitlines() if not line.startswith("hf auth login"))


@dataclass
class Place:
    """A copy of the repository, the environment of its shells, where the page's large disk is, and the hub's salt."""

    root: Path
    disk: Path
    environment: dict[str, str]
    salt: list[int]

    def bash(self, text: str, **more: str) -> tuple[str, list[str]]:
        """Paste commands into a shell: what they print, and those that ended with another status than 0."""
        failed = self.root / "failed"
        failed.write_text("")
        script = f"trap 'echo \"$? $BASH_COMMAND\" >> {failed}' ERR\n" + text.replace("/data/", f"{self.disk}/")
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.root, env=self.environment | more, text=True, timeout=1500,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        print(done.stdout[-6000:])
        return done.stdout, failed.read_text().splitlines()


def copy_of_the_repository(root: Path) -> None:
    """Code is linked, since it is only read; what is written to, or cut down, is copied."""
    for name in ("tango", "data", "checkpoints", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    for name in ("VLMEvalKit", "lmms-eval", "scripts", "configs"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("outputs", "logs", "*.egg-info", "build")
        )
    for script in ROOT.glob("run_*.sh"):
        shutil.copy(script, root)
    video = root / "configs/llava_video.yaml"
    video.write_text(re.sub(r"^(\s*pruned_layer:).*$", r"\1 1", video.read_text(), flags=re.MULTILINE))  # of two layers
    for name, benchmarks in BENCHMARKS.items():
        grid = root / f"configs/sweeps/{name}.yaml"
        text = re.sub(r"^frames: .*$", "frames: 8\nratios: [0.1]", grid.read_text(), flags=re.MULTILINE)
        grid.write_text(re.sub(r"^benchmarks: .*$", f"benchmarks: {benchmarks}", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("reproduce")
    stand_ins.build(folder / "store")
    (folder / "repository").mkdir()
    copy_of_the_repository(folder / "repository")
    root, disk = folder / "repository", folder / "disk"
    disk.mkdir()
    unset = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HF_HOME", "WRAPPER", "TANGO_CONFIG", "TANGO_ARGS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    with serve(folder / "store") as (address, salt):
        environment |= {
            "HF_ENDPOINT": address,
            "HOME": str(disk),  # nobody's token
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "PYTHONPATH": ":".join(map(str, (root, root / "lmms-eval", root / "VLMEvalKit"))),
        }
        yield Place(root, disk, environment, salt)


@pytest.fixture(scope="module")
def accuracy(place: Place) -> tuple[str, list[str]]:
    """Sections 2 to 4, pasted into one shell by somebody who has a token."""
    text = "\n".join(commands(heading) for heading in ("Checkpoints", "Data", "Accuracy"))
    return place.bash(text, HF_TOKEN=TOKEN)


def results(folder: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/cells/*/cell.json")}


def test_the_accuracy_tables_come_by_pasting(place: Place, accuracy: tuple[str, list[str]]) -> None:
    said, failed = accuracy
    (status,) = failed  # clips that only their owner gives cost their own question, and the status of their sweep
    assert status == "1 bash run_eval_ov.sh"
    where = place.disk / "hf/hub/datasets--OpenGVLab--MVBench/snapshots"
    assert re.search(
        rf"1 videos are missing \(fine_grained_pose.avi\); they belong into {where}/\w+/video/nturgbd", said
    )
    assert "1 of its 20 samples failed and are not in its result" in said
    cells = results(place.root / "VLMEvalKit/outputs")
    asked = {name: len(cell["samples"]) for name, cell in cells.items()}
    assert {name.split("-tango")[0].split("-vanilla")[0]: count for name, count in asked.items()} == {
        "vlmeval-MVBench_8frame": 19,
        "vlmeval-LongVideoBench_8frame": 2,
        "vlmeval-MLVU_MCQ_8frame": 7,
    } and len(asked) == 6
    for cell in cells.values():
        assert re.fullmatch(r"[0-9a-f]{40}", cell["provenance"]["model"]["revision"])
        assert re.fullmatch(r"[0-9a-f]{40}", cell["cell"]["data"]["commit"])
    every = (place.root / "results/paper/README.md").read_text()
    for model in ("llava-onevision-qwen2-7b-ov", "LLaVA-Video-7B-Qwen2", "Qwen2.5-VL-7B-Instruct"):
        assert f"| {model}, 8 frames, float32" in every


def test_scores_equal_a_count_by_hand(place: Place, accuracy: tuple[str, list[str]]) -> None:
    """MVBench numbers its questions by row, of which one is missing here: no other question's score may move."""
    for method in ("vanilla", "tango-0.1"):
        (run,) = place.root.glob(f"VLMEvalKit/outputs/*/cells/vlmeval-MVBench_8frame-{method}/run/llava*")
        table = pd.read_excel(run / f"{run.name}_MVBench_8frame_score.xlsx", keep_default_na=False)
        whole = pd.read_excel(run / f"{run.name}_MVBench_8frame.xlsx", keep_default_na=False)
        assert len(table) == 19 and len(whole) == 20 and "Fine-grained Pose" not in set(table["task_type"])
        assert table["index"].tolist() == [
            i for i, task in enumerate(whole["task_type"]) if task != "Fine-grained Pose"
        ]
        assert table["question"].tolist() == [whole["question"][index] for index in table["index"]]
        cell = results(place.root / "VLMEvalKit/outputs")[f"vlmeval-MVBench_8frame-{method}"]
        assert {row["id"]: row["score"] for row in cell["samples"]} == {
            str(index): score for index, score in zip(table["index"], table["score"], strict=True)
        }


def test_no_token_is_written_anywhere(place: Place, accuracy: tuple[str, list[str]]) -> None:
    texts = [
        file for file in place.root.rglob("*") if file.suffix in (".txt", ".json", ".jsonl", ".log", ".csv", ".md")
    ]
    assert len(texts) > 30 and TOKEN not in accuracy[0]
    assert [file for file in texts if TOKEN in file.read_text(encoding="utf-8", errors="replace")] == []


def test_what_is_put_in_its_place_is_asked_about_and_nothing_else(
    place: Place, accuracy: tuple[str, list[str]]
) -> None:
    (folder,) = set(re.findall(r"they belong into (\S+)\. Their", accuracy[0]))
    Path(folder).mkdir(parents=True)
    shutil.copy(place.root.parent / "store/clip.mp4", Path(folder) / "fine_grained_pose.avi")
    said, failed = place.bash(  # from the root, with a model named as on the page
        "export HF_HOME=/data/hf LMUData=/data/lmu\nbash run_eval_ov.sh --benchmark MVBench --ratio 0.1"
    )
    assert failed == [] and "videos are missing" not in said
    cells = {name: cell for name, cell in results(place.root / "VLMEvalKit/outputs").items() if "MVBench" in name}
    assert [len(cell["samples"]) for cell in cells.values()] == [20, 20]
    assert [cell["provenance"]["n_resumed"] for cell in cells.values()] == [19, 19]


def test_the_efficiency_table_comes_by_pasting_without_a_token(place: Place, accuracy: tuple[str, list[str]]) -> None:
    said, failed = place.bash("export HF_HOME=/data/hf LMUData=/data/lmu\n" + commands("Efficiency"))
    assert failed == [] and "token" not in said.lower().replace("tokens", "").replace("token/s", "")
    (table,) = place.root.glob("results/profile/*/efficiency.csv")
    assert pd.read_csv(table, comment="#")["name"].tolist() == ["unpruned", "Tango 10 %"]


def test_runs_by_hand_are_read(place: Place, accuracy: tuple[str, list[str]]) -> None:
    """The paper's own command in lmms-eval, a missing video and any batch size included; run.py of VLMEvalKit."""
    lost = place.disk / "hf/videomme/data" / f"{stand_ins.VIDEOS[1]}.mp4"
    assert lost.is_file(), "the efficiency table was to come first"
    lost.rename(lost.with_suffix(".away"))
    model = "lmms-lab/llava-onevision-qwen2-7b-ov"
    said, failed = place.bash(
        "export HF_HOME=/data/hf LMUData=/data/lmu\n"
        f"WRAPPER=tango python -m lmms_eval --model llava_onevision --model_args pretrained={model},max_frames_num=8,"
        "conv_template=qwen_1_5,model_name=llava_qwen,attn_implementation=flash_attention_2 --tasks videomme "
        "--batch_size 4 --log_samples --log_samples_suffix llava_onevision --output_path ./logs/\n"
        f"(cd VLMEvalKit && WRAPPER=tango python run.py --model {model} --data MLVU_MCQ_8frame --work-dir ../logs/v)\n"
        "tango results ./logs --output by_hand\n",
        HF_TOKEN=TOKEN,
    )
    assert [line.split()[:4] for line in failed] == [["1", "WRAPPER=tango", "python", "-m"]]  # two samples failed
    assert f"{lost} does not exist" in said and TOKEN not in said
    files = [pd.read_csv(file, comment="#") for file in place.root.glob("by_hand/*/benchmarks.csv")]
    found = pd.concat(files)[["framework", "benchmark", "questions"]].values.tolist()
    assert sorted(found) == [["VLMEvalKit", "MLVU", 7], ["lmms-eval", "Video-MME", 2]]


def test_another_commit_of_a_checkpoint_is_asked_anew(place: Place, accuracy: tuple[str, list[str]]) -> None:
    """Under the same hub id: no answer of the weights before is taken for one of these, and theirs are kept."""
    name = "vlmeval-MLVU_MCQ_8frame-vanilla"
    before = results(place.root / "VLMEvalKit/outputs")[name]
    place.salt[0] = 1
    try:
        said, failed = place.bash(
            "export HF_HOME=/data/hf LMUData=/data/lmu\nhf download Qwen/Qwen2.5-VL-7B-Instruct\n"
            "bash run_eval_qwen.sh --cell 1"
        )
    finally:
        place.salt[0] = 0
    assert failed == [] and f"{name} has changed; its result is kept in" in said
    after = results(place.root / "VLMEvalKit/outputs")[name]
    revisions = {cell["provenance"]["model"]["revision"] for cell in (before, after)}
    assert len(revisions) == 2 and after["provenance"]["n_resumed"] == 0 and len(after["samples"]) == 7
    (kept,) = place.root.glob(f"VLMEvalKit/outputs/*/cells/{name}/earlier/*/cell.json")
    assert json.loads(kept.read_text()) == before
