"""What `tango results --site` writes: whole or not at all, the tables' own numbers, a sentence for what cannot be."""

import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from made_up import made_up, write_sweep
from made_up_runs import NASTY, example, write_runs

from tango.cli import main
from tango.results import ResultsError
from tango.results.compare import compare_runs
from tango.site import is_ours, write_site
from tango.site.pages import shown_command

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "motionqa"


def read(site, name):
    """What a data file holds."""
    text = (site / "data" / f"{name}.js").read_text(encoding="ascii")
    assert text.count("\n") == 1 and "<" not in text.partition(" = ")[2]
    return json.loads(text.partition(" = ")[2].rstrip(";\n"))


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    site = tmp_path_factory.mktemp("committed") / "site"
    assert write_site([COMMITTED], site) == []
    return site


def test_numbers_are_those_of_the_committed_tables(committed):
    """Made by other code from the same samples; tables have four decimals."""
    runs = read(committed, "index")["runs"]
    by_name = {(run["framework"], run["label"]): run for run in runs}
    for table, columns in (
        ("benchmarks", {"accuracy": "accuracy", "difference": "difference", "share_kept": "share"}),
        ("efficiency", {}),
    ):
        lines = pd.read_csv(COMMITTED / f"{table}.csv", comment="#").to_dict("records")
        assert len(lines) == len(runs) == 10
        for line in lines:
            run = by_name[line["framework"], line["name"]]
            for column, ours in columns.items():
                if run[ours] is not None:
                    wanted = [line[f"{column}{end}"] for end in ("", "_low", "_high")]
                    assert run[ours] == pytest.approx(wanted, abs=1e-4)
            if columns:
                assert (run["kept"], run["n"]) == (pytest.approx(line["tokens_kept"], abs=1e-4), line["questions"])
            else:
                assert run["times"]["Avg_Total_TTFT"] == pytest.approx(line["Avg_Total_TTFT (ms)"], abs=1e-4)
                assert (run["speed"] or 1) == pytest.approx(line["Avg_Total_TTFT speed-up"], abs=1e-4)
    unpruned = [run for run in runs if run["method"] == "vanilla"]
    assert [run["difference"] for run in unpruned] == [None, None] and len({run["against"] for run in runs}) == 2
    pairs, numbers = read(committed, "index")["pairs"], {key: runs.index(run) for key, run in by_name.items()}
    for line in pd.read_csv(COMMITTED / "comparisons.csv", comment="#").to_dict("records"):
        tango, other = numbers[line["framework"], "Tango 10 %"], numbers[line["framework"], line["against"]]
        wanted = [line[f"difference{end}"] for end in ("", "_low", "_high")]
        assert pairs[f"{tango},{other}"] == pytest.approx(wanted, abs=1e-4)


def test_a_number_can_be_followed_to_its_samples(committed):
    """657 of 720: 91.2 %."""
    index = read(committed, "index")
    (number,) = [n for n, run in enumerate(index["runs"]) if run["place"].endswith("cells/motionqa-tango-0.1")]
    run, vector = index["runs"][number], read(committed, f"r{number}")
    assert sum(vector["scores"]) == 657 and run["accuracy"][0] == pytest.approx(100 * 657 / 720)
    assert "python -m lmms_eval --model llava_onevision" in run["facts"]["made by"]
    assert "/tmp" not in run["facts"]["made by"] and "torch 2." in run["facts"]["versions"]
    ids = read(committed, "b0")["ids"]
    place = ids.index("64-shape")  # of 3 that Tango alone has right
    gold, question = read(committed, f"q0-{place // 250}")[place % 250]
    choice, reply, before, after, *_ = read(committed, f"r{number}-{place // 250}")[place % 250]
    asked = next(one for one in json.loads((ROOT / "data/motionqa/test.json").read_text()) if one["id"] == "64-shape")
    assert question.startswith(asked["question"]) and gold == choice == asked["answer"]
    assert reply == asked["options"]["ABCD".index(gold)] and (before, after) == (512, 58)
    assert not (committed / "frames").exists() and not list(committed.glob("data/v*"))


def test_flips_are_counted_and_have_the_tables_interval(capsys):
    found = compare_runs([COMMITTED], "motionqa-tango-0.1", "motionqa-topk-0.1")
    line = pd.read_csv(COMMITTED / "comparisons.csv", comment="#").set_index("against").loc["top-k saliency 10 %"]
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (line["difference_low"], line["difference_high"]), abs=1e-4
    )
    assert len(found.gained) - len(found.lost) == round(line["difference"] * 7.2)
    words = ["results", str(COMMITTED), "--compare", "motionqa-tango-0.1", "motionqa-vanilla"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["compared"]
    assert (len(told["gained"]), len(told["lost"]), told["questions"]) == (3, 50, 720)
    assert main(words) == 0 and "-6.5 [-8.6, -4.7]" in capsys.readouterr().out


@pytest.fixture
def sweep(tmp_path):
    write_runs(tmp_path / "sweep", example(), question=NASTY)
    return tmp_path / "sweep"


def test_the_page_asks_no_other_host_and_holds_no_text_of_others(sweep, tmp_path):
    write_site([sweep], tmp_path / "site")
    for name in ("index.html", "page.js", "page.css"):
        assert not re.search(
            r"(src|href|url\(|import)\s*[=(]?\s*[\"']?(https?:)?//", (tmp_path / "site" / name).read_text()
        )
    page = (tmp_path / "site" / "index.html").read_text()
    assert "default-src 'none'" in page and page.count("<script") == page.count("</script") == 2
    assert page.count("console.error") == 1 and "&lt;script&gt;" in page  # in the title
    assert is_ours(tmp_path / "site")
    assert (tmp_path / "site" / "plotly.min.js").stat().st_size < 6 * 2**20
    run = next(run for run in read(tmp_path / "site", "index")["runs"] if run["method"] == "topk")
    assert run["facts"]["made by"] == NASTY and run["model"] == f"{NASTY}, 8 frames, float32"


def test_a_site_is_replaced_as_a_whole_or_stays(sweep, tmp_path, monkeypatch):
    site = tmp_path / "site"
    write_site([sweep], site)
    files = {file: file.read_bytes() for file in site.rglob("*") if file.is_file()}
    (site / "data" / "r99-7.js").write_text("of a larger one before")
    write_site([sweep], site)
    assert {file: file.read_bytes() for file in site.rglob("*") if file.is_file()} == files

    def broken(*_):
        yield "b0", []
        raise OSError("No space left on device")

    monkeypatch.setattr("tango.site.pages", broken)
    with pytest.raises(OSError, match="No space"):
        write_site([sweep], site)
    assert {file: file.read_bytes() for file in site.rglob("*") if file.is_file()} == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site", "sweep"]


def test_what_is_unfinished_is_noted_beside_what_is_shown(sweep, tmp_path, capsys):
    (sweep / "cells" / "half").mkdir()
    (sweep / "cells" / "\x1b[31mred").mkdir()
    (sweep / "cells" / "tango-0.2" / "cell.json").write_text('{"cell"')
    (sweep / "cells" / "vanilla" / "run" / "tiny" / "1_samples_motionqa.jsonl").write_text('{"doc_id": 0, "accur')
    assert main(["results", str(sweep), "--site", str(tmp_path / "site")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[31mred: not finished" in said
    index = read(tmp_path / "site", "index")
    assert len(index["runs"]) == 6 and [run["texts"] for run in index["runs"]].count(False) == 2
    assert main(["results", str(sweep), "--site", str(tmp_path / "site"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["site"] == str(tmp_path / "site" / "index.html") and told["remarks"] == index["remarks"]
    for part in (
        "cells/half: not finished, or failed",
        "tango-0.2/cell.json: damaged",
        "vanilla: its questions and replies",
    ):
        assert part in said and any(part in remark for remark in index["remarks"])


def refused(words, capsys, monkeypatch=None):
    """What a command that ends in 2 says: one line."""
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def test_folders_that_are_not_results_are_refused_by_a_sentence(tmp_path, capsys):
    def of(name):
        return refused(["results", tmp_path / name, "--site", tmp_path / "site"], capsys)

    assert "there is no folder" in of("nowhere")
    (tmp_path / "empty").mkdir()
    assert "no finished cells below" in of("empty")
    (tmp_path / "half" / "cells" / "a" / "run").mkdir(parents=True)
    assert "half/cells/a: not finished, or failed" in of("half")
    write_sweep(tmp_path / "others", [{"hello": "world"}])
    assert "cell.json: not a finished cell: it lacks cell, provenance, efficiency, samples" in of("others")
    old = made_up("tango", 0.1, [1, 2])  # as the first versions of 0.1.0 wrote them
    del old["provenance"]["processes"], old["efficiency"]["Total_GPU_runtime"]
    for row in old["samples"]:
        del row["tokens_before"]
    write_sweep(tmp_path / "old", [old])
    wanted = "it lacks provenance.processes, efficiency.Total_GPU_runtime, samples.tokens_before; run its sweep again"
    assert wanted in of("old")
    (tmp_path / "binary" / "cells" / "a").mkdir(parents=True)
    (tmp_path / "binary" / "cells" / "a" / "cell.json").write_bytes(b"\x00\xff" * 100)
    assert "cell.json: damaged" in of("binary")
    assert not (tmp_path / "site").exists()


def test_folders_that_hold_something_else_are_left_alone(sweep, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<title>mine</title>")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file", "sweep"):
        said = refused(["results", sweep, "--site", tmp_path / name], capsys)
        assert "holds other files; give --site a new folder" in said
    assert (tmp_path / "mine" / "index.html").read_text() == "<title>mine</title>" and sweep.is_dir()
    assert "are both" in refused(["results", sweep, "--site", "x", "--output", "x"], capsys)
    assert "give --site DIR" in refused(["results", sweep, "--videos", tmp_path], capsys)
    assert "no such folder" in refused(["results", sweep, "--site", tmp_path / "s", "--videos", "nowhere"], capsys)
    assert "with --videos" in refused(["results", sweep, "--site", tmp_path / "s", "--model", "x"], capsys)
    words = ["results", sweep, "--site", tmp_path / "s", "--videos", tmp_path, "--model", tmp_path / "empty"]
    assert "empty" in refused(words, capsys)
    find = importlib.util.find_spec
    monkeypatch.setattr("tango.site.find_spec", lambda name: None if name == "plotly" else find(name))
    assert "pip install 'tango-vlm[site]'" in refused(["results", sweep, "--site", tmp_path / "s"], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "sweep"]


def test_runs_are_named_by_their_folders(sweep, tmp_path, capsys):
    def of(*names):
        return refused(["results", sweep, "--compare", *names], capsys)

    assert "'tango' names no run; there are" in of("tango", "vanilla")
    assert "other is" not in of("other", "nowhere")
    assert "is on MVBench" in of("other", "vanilla")
    assert "answered different questions" in of("other", "nasty")
    write_runs(tmp_path / "two", {"vanilla": made_up("vanilla", None, [1], 512)})
    words = ["results", sweep, tmp_path / "two", "--compare"]
    assert "'vanilla' names 2 runs; there are" in refused([*words, "vanilla", "tango-0.1"], capsys)
    found = compare_runs([sweep, tmp_path / "two"], str(tmp_path / "two"), "sweep/cells/vanilla")  # the only one there
    assert (len(found.gained), len(found.lost)) == (0, 31)
    with pytest.raises(ResultsError, match="names no run"):
        compare_runs([sweep], "anilla", "vanilla")


def test_commands_are_shown_as_from_the_folder_of_their_files():
    short = "TANGO_CONFIG=configs/a.yaml python -m m --model_args p=checkpoints/t,n=8 --to b"
    assert shown_command(re.sub("configs/|checkpoints/|b$", r"/home/x/repo/\g<0>", short)) == short
    for same in ("python -m m --model a/b --to /data/x", "run /data/a /home/b", "run"):
        assert shown_command(same) == same
