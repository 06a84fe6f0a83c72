"""Samples beside committed tables: the tables follow from them, they are read like a sweep, damaged ones are named."""

import io
import re
import sys
import tarfile
from pathlib import Path

import pytest
from made_up import made_up, write_sweep

from tango.cli import main
from tango.results import ResultsError, report, write_results
from tango.results.samples import ARCHIVE, LARGEST, pack, read_folders
from tango.results.verify import verify

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "results" / "motionqa"


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tables of two cells, and their samples."""
    monkeypatch.setattr(sys.modules["tango.results.report"], "plot_all", lambda *_: [])
    cells = [made_up("vanilla", None, list(range(32)), 512), made_up("tango", 0.1, list(range(28)))]
    write_sweep(tmp_path / "sweep", cells)
    write_results(cells, tmp_path / "tables", "python scripts/demo.py")
    pack((tmp_path / "sweep" / "cells").iterdir(), tmp_path / "tables" / ARCHIVE)
    return tmp_path / "tables"


def test_the_committed_tables_follow_from_the_committed_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; the cells' own numbers follow from their records: tests/test_results_verify.py."""
    monkeypatch.setattr(sys.modules["tango.results.report"], "plot_all", lambda *_: [])
    cells, remarks = read_folders([COMMITTED])
    assert len(cells) == 10 and {len(cell["samples"]) for cell in cells} == {720} and remarks == []
    command = re.search(r"^- made by: (.+)$", (COMMITTED / "README.md").read_text(), re.MULTILINE)[1]
    write_results(cells, tmp_path, command, title="MotionQA")
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert written == {name: (COMMITTED / name).read_text() for name in written} and len(written) == 9
    tango = next(cell for cell in cells if (cell["cell"]["framework"], cell["cell"]["ratio"]) == ("lmms-eval", 0.1)
                 and cell["cell"]["method"] == "tango")  # fmt: skip
    right = sum(row["prediction"] == row["answer"] for row in tango["samples"])
    assert (
        right == 657 and "| Tango 10 %          | lmms-eval   |              11.1 | 720 | 91.2" in written["README.md"]
    )


def test_what_is_shipped_is_small() -> None:
    """Model, data and samples together: a clone stays quick."""
    files = [file for name in ("checkpoints", "data") for file in (ROOT / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in [*files, COMMITTED / ARCHIVE]) < 25 * 2**20


def test_packing_is_repeatable_and_leaves_out_what_is_unfinished(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep" / "cells" / "half").mkdir()
    (tmp_path / "sweep" / "cells" / "half" / "identity").write_text("x")
    (tmp_path / "sweep" / "cells" / "00" / "log.txt").write_text("x")
    pack(sorted((tmp_path / "sweep" / "cells").iterdir(), reverse=True), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tables / ARCHIVE).read_bytes()


def test_what_could_not_be_read_again_is_not_packed(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = list((tmp_path / "sweep" / "cells").iterdir())
    for limit, said in (("MOST", r"cells have \d+ files"), ("LARGEST", r"cells have [\d,]+ bytes")):
        with monkeypatch.context() as patched:
            patched.setattr(f"tango.results.samples.{limit}", 1)
            with pytest.raises(ResultsError, match=said):
                pack(cells, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_tables_are_held_against_the_samples_beside_them(tables: Path, tmp_path: Path) -> None:
    found = verify([tables])
    assert found.differ == [] and found.agree > 100
    text = (tables / "accuracy.csv").read_text()
    (tables / "accuracy.csv").write_text(text.replace("70.0000", "71.0000"))
    write_sweep(tmp_path / "other", [made_up("tango", 0.1, [1])])  # another sweep changes nothing
    (finding, *_) = verify([tables, tmp_path / "other"]).differ
    assert (Path(finding.file).name, finding.says, float(finding.gives)) == ("accuracy.csv", "71.0000", 70)


def test_tables_are_made_of_them_again(tables: Path, tmp_path: Path) -> None:
    report([tables], tmp_path / "new")
    new = next((tmp_path / "new").glob("*/accuracy.csv")).read_text().splitlines()
    assert new[1:] == (tables / "accuracy.csv").read_text().splitlines()[1:]  # but for the command


def archive(members: dict[str, bytes | None]) -> bytes:
    """None: a link to /etc/passwd."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(data or b"")
            tar.addfile(member, io.BytesIO(data or b""))
    return content.getvalue()


@pytest.mark.parametrize(("content", "why"), [
    (b"", "damaged"), (b"text", "damaged"), (archive({"cells/a/cell.json": bytes(10**5)})[:150], "damaged"),
    (archive({"cells/a/cell.json": None}), "'cells/a/cell.json', and only files of cells/ belong there"),
    (archive({"../cells/cell.json": b"{}"}), "'../cells/cell.json', and only files of cells/"),
    (archive({"cells/../../cell.json": b"{}"}), "'cells/../../cell.json', and only files"),
    (archive({"cells/a/cell.json": b"{}"}), "samples.tar.xz/cells/a/cell.json: not a finished cell: it lacks cell,"),
    (archive({}), "no finished cells below"),
])  # fmt: skip
def test_damaged_ones_are_named(content: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ARCHIVE).write_bytes(content)
    assert main(["results", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert why in said and "tango-" not in said  # no temporary folder


def test_one_that_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango.results.samples.LARGEST", 10**6)
    (tmp_path / ARCHIVE).write_bytes(archive({"cells/a/cell.json": bytes(2 * 10**6)}))
    with pytest.raises(ResultsError, match=r"it holds more than 0\.0009\d* GB"):
        read_folders([tmp_path])
    assert LARGEST == 4 * 2**30


def test_one_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty ones are within any limit of bytes, and unpacking them takes time all the same."""
    (tmp_path / ARCHIVE).write_bytes(archive({f"cells/a/{number}": b"" for number in range(4)}))
    for most, said in ((3, "it holds more than 3 files"), (4, "no finished cells below")):
        monkeypatch.setattr("tango.results.samples.MOST", most)
        with pytest.raises(ResultsError, match=said):
            read_folders([tmp_path])
