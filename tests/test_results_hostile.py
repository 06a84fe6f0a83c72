"""Cells whose names act as markup somewhere, whose numbers cannot be, and folders in odd shapes: shown as they are, or
named and left out; the rest of the report is there.
"""

import csv
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up import made_up, write_sweep
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from tango.cli import main
from tango.results import ResultsError, report, summaries, write_results
from tango.results.cells import read_cell
from tango.results.escaping import latex_text, markdown_items, markdown_text, plain
from tango.results.samples import read_folders

NAMES = [
    "a\nb", "a\r\nb", "a\u2028b\u2029c\x85d", "a\x0bb\x0cc\x1cd", "a|b", "||", "<script>alert(1)</script>",
    "<img src=x>", "&lt;b&gt;", "a & b", "=1+1", "=HYPERLINK(\"http://x\",\"y\")", "+1", "-1", "@SUM(A1)", "\t=1",
    "#1", "a#b", "# head", "a,b", 'say "x"', "'quoted'", "*bold*", "_em_", "snake_case", "`code`",
    "[x](javascript:alert(1))", "![x](y)", "[x]: y", "~~x~~", "$x$", "$\\frac{", "100 %", "\\input{x}", "\\\\", "{a}",
    "a^b~c", "[red]x[/red]", "[/box]", "\x1b[31mred", "1. one", "2) two", "- item", "+ item", "- [ ] x", "---", "==",
    "ü漢字🎬", "\ud83d", "\udcff\udcfe", "\u202eabc", "x" * 300, "漢" * 300, "_hidden", "..", "a/b/../c", "CON",
    "http://x.y/z", "average", "framework", "name", "n", "MotionQA_low", "\0",
]  # fmt: skip
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(name: str) -> str:
    return " ".join(plain(name).split())


def cells_named(name: str) -> list[dict[str, Any]]:
    """A name everywhere one can be."""
    cells = [made_up("vanilla", None, list(range(32)), 512), made_up("tango", 0.1, list(range(28)), variant=name)]
    cells.append(made_up(name if name.strip() else "m", 0.1, [1, 2, 3]))
    for cell in cells:
        cell["cell"] |= {"model": name, "benchmark": name}
        cell["provenance"]["model"]["pretrained"] = name
        cell["provenance"]["device"]["name"] = name
        cell["provenance"]["sources"] = {"TANGO_CONFIG": name}
        for row in cell["samples"]:
            row |= {"kind": name, "prediction": name}
    return cells


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a page as an independent reader of Markdown sees them: rows of texts."""
    found: list[list[list[str]]] = []
    for token in MARKDOWN.parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level >= 4:  # in a cell
            found[-1][-1].append("".join(child.content for child in token.children or []))
    return found


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_are_text_in_every_format(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["tango.results.report"], "plot_all", lambda *_: []
    )  # seconds each: below, of all names at once
    cells = cells_named(name)
    write_sweep(tmp_path / "in", cells)
    assert main(["results", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    readme = (folder / "README.md").read_text(encoding="utf-8")
    html = MARKDOWN.render(readme)
    assert set(re.findall(r"<(\w+)", html)) <= {
        *("h1", "h2", "ul", "li", "p", "table", "thead", "tbody", "tr", "th", "td", "img", "strong")
    }
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {"accuracy.png", "time.png", "parts.png"}
    first, by_kind, *_ = tables(readme)
    assert [row[0] for row in first[1:]] == [row[0] for row in by_kind[1:]] and len(first) == 4
    assert first[1][0] == "unpruned" and shown(f"Tango 10 %, {name}") in [row[0] for row in first]
    assert len({*map(len, first)}) == 1
    assert by_kind[0][1] == shown(f"{name} (n = 40)")
    for file in folder.glob("*.csv"):
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# made by: tango results")
        rows = list(csv.reader(line for line in io.StringIO(text) if not line.startswith("# ")))
        assert len({len(row) for row in rows}) == 1
        for field in (field for row in rows for field in row):
            assert not field.startswith(("=", "+", "@")) and (not field.startswith("-") or float(field) < 0)
        frame = pd.read_csv(file, comment="#", keep_default_na=False)
        assert frame.shape == (len(rows) - 1, len(rows[0]))
        if "variant" in frame:
            assert {plain(name), f"'{plain(name)}"} & {*frame["variant"]}
    lines = (folder / "accuracy.tex").read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if not line.startswith("% ")]
    assert len(lines) == 10  # begin, end, three rules, four rows and the end of the last line
    braces = re.sub(r"\\[{}]", "", "\n".join(lines))
    assert braces.count("{") == braces.count("}")
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r" \\")}) == 1


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")  # scripts that the font lacks; 60 long names
def test_names_are_text_in_plots(tmp_path: Path) -> None:
    cells = [made_up("vanilla", None, [1], 512)]
    cells += [made_up(name if name.strip() else "m", 0.1, [number]) for number, name in enumerate(NAMES)]
    for cell in cells:
        cell["cell"]["benchmark"] = cell["provenance"]["device"]["name"] = "$\\frac{\n\udcff"
    write_sweep(tmp_path / "in", cells)
    write_results(read_folders([tmp_path / "in"])[0], tmp_path, "tango results $x", title="$\\frac{ \ud83d")
    pictures = sorted(tmp_path.rglob("*.png"))
    assert [picture.name for picture in pictures] == ["accuracy.png", "parts.png", "time.png"]
    for picture in pictures:
        with Image.open(picture) as image:
            assert max(image.size) < 5000 and image.info["Title"] == "$\\frac{ \\ud83d"


def test_text_in_latex() -> None:
    assert latex_text(r"50 % of $x_1 & \frac{a}{b} # ~^ <>") == (
        r"50 \% of \$x\_1 \& \textbackslash{}frac\{a\}\{b\} \# \textasciitilde{}\textasciicircum{} "
        r"\textless{}\textgreater{}"
    )
    assert latex_text("[x") == "{}[x" and latex_text("*") == "{}*"  # else the line break before it would take them


@pytest.mark.parametrize(
    "text", [*NAMES, "*", "**", "a*b*c", "<", ">q", "a\\", "`", "``a`", "[a][b]", "[a]", "&#42;", "***", "_ _ _"]
)
def test_text_in_markdown(text: str) -> None:
    """As an independent reader shows it: in a line, in a heading, and as an item of a list."""
    want = shown(text)
    for markdown in (f"x {markdown_text(text)}", f"# x {markdown_text(text)}"):
        (inline,) = (token for token in MARKDOWN.parse(markdown) if token.type == "inline")
        assert "".join(child.content for child in inline.children or []) == f"x {want}".rstrip()
        assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    if want:
        kinds = [token.type for token in MARKDOWN.parse(markdown_items([text]))]
        assert kinds[:4] == ["bullet_list_open", "list_item_open", "paragraph_open", "inline"] and len(kinds) == 7


WRONG: list[tuple[str, Any]] = [
    ("samples.3.score", "1"), ("samples.3.score", 1e300), ("samples.3.score", -0.5), ("samples.3.score", True),
    ("samples.3.tokens_before", -512), ("samples.3.tokens_before", "many"), ("samples.3.tokens_after", 1e300),
    ("samples.3.tokens_after", 600), ("samples.3.tokens_average", 513.0), ("samples.3.tokens_average", "x"),
    ("samples.3.id", 3), ("samples.3.id", None), ("samples.3", []), ("samples", []), ("samples", {}),
    ("samples.3.kind", ["a"]), ("efficiency.Total_runtime", "long"), ("efficiency.Total_runtime", -1.0),
    ("efficiency.Avg_Total_TTFT", 1e300), ("efficiency.cold_samples", -1), ("efficiency.cold_samples", "x"),
    ("efficiency.spread", {"Avg_Total_TTFT": "x"}), ("efficiency", None), ("cell.ratio", 7.0), ("cell.ratio", -0.1),
    ("cell.ratio", "0.1"), ("cell.method", None), ("cell.model", 5), ("cell.variant", 5),
    ("provenance.model.max_frames_num", -8), ("provenance.model.max_frames_num", 10**15), ("provenance.processes", 0),
    ("provenance.device.threads", -2), ("provenance.device", {}), ("provenance.device.count", "two"),
    ("provenance.commit", {}), ("provenance.commit.hash", 5), ("provenance.versions", {"torch": 2}),
    ("provenance.time", 5), ("provenance.sources", "x"), ("provenance.settings", []), ("provenance.seed", 2**70),
    ("provenance.seed", 1.5), ("provenance.load", {"start": 1}), ("provenance.load", "high"),
    ("provenance.model.times", 5), ("reported", "x"), ("cell", []), ("extra", 10**30), ("extra", float("nan")),
    ("extra", float("-inf")),
]  # fmt: skip


def changed(cell: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(cell))
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    inner: Any = made
    for part in path:
        inner = inner[part]
    inner[last] = value
    return made


@pytest.mark.parametrize("place, value", WRONG)
def test_a_cell_that_cannot_be_is_named_and_left_out(place: str, value: Any, tmp_path: Path) -> None:
    good = [made_up("vanilla", None, list(range(32)), 512), made_up("tango", 0.1, list(range(28)))]
    write_sweep(tmp_path, [*good, changed(made_up("random", 0.1, [1]), place, value)])
    made = report([tmp_path], tmp_path / "out")
    (remark,) = made.remarks
    assert remark.startswith(f"{tmp_path / 'cells' / '02' / 'cell.json'}: ") and len(remark) < len(str(tmp_path)) + 300
    (folder,) = (tmp_path / "out").iterdir()
    assert remark.split(": ")[1][:20] in (folder / "README.md").read_text()
    assert pd.read_csv(folder / "accuracy.csv", comment="#")["MotionQA"].tolist() == [80, 70]


DEPTH = 100_000
DAMAGED = {
    "empty": b"", "cut": b'{"cell": {"frame', "zeros": b"\0" * 100, "no UTF-8": b'{"cell": "\xff\xfe"}',
    "text": b"precious", "a list": b"[]", "a number": b"5", "deep": b'{"cell": ' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    "deep in an unused field": b'{"x": ' + b'{"a": ' * 60 + b"1" + b"}" * 61,
    "long number": b'{"seed": ' + b"9" * 5000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_cell_is_named_and_left_out(content: bytes, tmp_path: Path) -> None:
    write_sweep(tmp_path, [made_up("vanilla", None, [1], 512)] * 2)
    (tmp_path / "cells/01/cell.json").write_bytes(content)
    (remark,) = report([tmp_path], tmp_path / "out").remarks
    assert remark.startswith(f"{tmp_path}/cells/01/cell.json: ") and len(remark) < len(str(tmp_path)) + 300
    with pytest.raises(ResultsError, match=r"01/cell\.json"):
        read_cell(tmp_path / "cells/01/cell.json")


def test_odd_files_in_the_place_of_a_cell(tmp_path: Path) -> None:
    write_sweep(tmp_path, [made_up("vanilla", None, [1], 512)])
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file), lambda file: None)):
        place = tmp_path / "cells" / f"odd{number}"
        place.mkdir()
        make(place / "cell.json")
    (tmp_path / "cells/odd9").symlink_to(tmp_path / "nowhere")
    (tmp_path / "cells/notes.txt").write_text("notes")
    cells, remarks = read_folders([tmp_path])
    assert len(cells) == 1 and len(remarks) == 4 and all("not finished, or failed" in remark for remark in remarks)


def test_folders_through_links(tmp_path: Path) -> None:
    write_sweep(tmp_path / "real/sweep", [made_up("vanilla", None, [1], 512), made_up("tango", 0.1, [1])])
    (tmp_path / "all").mkdir()
    (tmp_path / "all/linked").symlink_to(tmp_path / "real/sweep")
    (tmp_path / "all/again").symlink_to(tmp_path / "real")
    (tmp_path / "real/sweep/back").symlink_to(tmp_path / "all")
    (tmp_path / "cells").symlink_to(tmp_path / "real/sweep/cells")
    (tmp_path / "apart/cells").mkdir(parents=True)
    (tmp_path / "apart/cells/one").symlink_to(tmp_path / "real/sweep/cells/00")
    (tmp_path / "link").symlink_to(tmp_path / "apart")
    for folder, number in (
        ("all", 2),
        ("all/linked", 2),
        ("cells", 2),
        ("apart", 1),
        ("link", 1),
        ("real", 2),
        (".", 2),
    ):
        cells, remarks = read_folders([tmp_path / folder])
        assert (len(cells), remarks) == (number, []), folder
    cells, _ = read_folders([tmp_path / "all", tmp_path / "apart", tmp_path / "real"])
    assert len(cells) == 2  # nothing is counted twice


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    write_sweep(tmp_path, [made_up("vanilla", None, [1], 512)] * 2)
    (tmp_path / "cells/01").chmod(0)
    try:
        cells, remarks = read_folders([tmp_path])
    finally:
        (tmp_path / "cells/01").chmod(0o755)
    assert len(cells) == 1 and any("Permission denied" in remark for remark in remarks)


def test_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9\n|<b>")
    write_sweep(Path(os.fsdecode(folder)), [made_up("vanilla", None, [1], 512)] * 2)
    (Path(os.fsdecode(folder)) / "cells/01/cell.json").write_text("{")
    out = str(tmp_path / "out")
    assert main(["results", os.fsdecode(folder), "--output", out]) == 0
    assert "caf\\udce9\\n|<b>/cells/01/cell.json: damaged" in capsys.readouterr().out
    assert main(["results", os.fsdecode(folder), "--output", out, "--json"]) == 0
    assert "caf\udce9\n|<b>/cells" in json.loads(capsys.readouterr().out)["remarks"][0]
    readme = (tmp_path / "out/tiny_8frame_float32/README.md").read_text(encoding="utf-8")
    assert "caf\\\\udce9\\\\n\\|&lt;b&gt;/cells/01/cell.json: damaged" in readme
    assert main(["results", os.fsdecode(folder), "--output", os.fsdecode(folder)]) == 0


def test_models_called_alike_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tango.results.report"], "plot_all", lambda *_: [])
    names = ["a/b", "a b", "a-b", "x" * 300, "x" * 299 + "y", "漢" * 300]
    write_sweep(tmp_path, [made_up("vanilla", None, [1], 512, model=name) for name in names])
    made = report([tmp_path], tmp_path / "out")
    folders = {file.parent for file in made.files} - {tmp_path / "out"}  # there is the table over all models
    assert len(folders) == len(names) and {path for path in (tmp_path / "out").iterdir() if path.is_dir()} == folders
    for name in names:
        texts = [(folder / "README.md").read_text(encoding="utf-8") for folder in folders]
        assert sum(text.startswith(f"# {name}, 8 frames") for text in texts) == 1


def test_a_terminal_shows_markup_as_text(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(*summaries(cells_named("[red]x[/red] [/box]")))
    assert console.export_text().count("[red]x[/red] [/box]") >= 3
    made = write_results(cells_named("[/box]"), tmp_path, "tango results [/x]", ["[red]gone[/red]"])
    made.show(console)
    assert "note: [red]gone[/red]" in console.export_text()
