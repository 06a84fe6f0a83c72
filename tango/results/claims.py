"""What the files of a folder of tables say (Markdown, CSV and LaTeX of tango.results.report), number by number, held
against what they should say. For tango.results.verify.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tango.results.escaping import csv_text, latex_text, markdown_text
from tango.results.layout import DIFFERENCE, SHARE
from tango.results.recount import KEYS, SPED_UP, Table
from tango.runs.settings import VANILLA
from tango.runs.summary import WITH_UNITS

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
ROUNDED = 1.2e-4  # what a number of a CSV file, of four decimals, and one that follows from a few of them may be off
TEXT = {
    "",
    "model",
    "framework",
    "benchmark",
    "quantity",
    "ran on",
    "published",
}  # columns of shown tables without our numbers


@dataclass(frozen=True)
class Finding:
    """One number, or word, of a file: which it is, what the file says, and what the samples give."""

    file: str
    what: str
    says: str
    gives: str


@dataclass
class Outcome:
    """How many values agree, which differ, which cannot be checked and why (`gives`), and what else is to be known."""

    agree: int = 0
    differ: list[Finding] = field(default_factory=list)
    unchecked: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differs(self, file: Path | str, what: str, says: str, gives: str) -> None:
        """Note a difference."""
        self.differ.append(Finding(str(file), what, says, gives))

    def unknown(self, file: Path, what: str, says: str, why: str) -> None:
        """Note what cannot be checked."""
        self.unchecked.append(Finding(str(file), what, says, why))

    def hold(self, file: Path, what: str, says: Any, gives: Any) -> None:
        """Compare one value of a JSON file with what it should be, numbers to nine digits."""
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (says, gives))
        if math.isclose(says, gives, rel_tol=1e-9, abs_tol=1e-12) if numbers else says == gives:
            self.agree += 1
        else:
            self.differs(file, what, str(says), str(gives))

    def hold_text(self, file: Path, what: str, says: str, gives: Any, slack: float = 0.0, alone: bool = False) -> None:
        """Compare the numbers of a table's text with those they should be, to the digits that it has. gives: a number,
        several, a word, or None, NaN and infinity for what has no number. alone: the first of several will do.
        """
        if isinstance(gives, str):
            found, right = says.strip(), says.strip() == gives
        else:
            wanted = [one for one in _several(gives) if one is not None and math.isfinite(one)]
            if len(wanted) < len(_several(gives)):
                wanted = []  # one that is not finite has its interval left out, too
            found = "" if says.strip() in ("-", "", "nan", "inf", "-inf", "unknown") else says.strip()
            numbers = NUMBER.findall(found)
            wanted = wanted[:1] if alone and len(numbers) == 1 else wanted
            right = len(numbers) == len(wanted) and all(
                abs(float(text) - value) <= 0.500001 * 10.0 ** -decimals(text) + slack * max(1.0, abs(value))
                for text, value in zip(numbers, wanted, strict=True)
            )
        if right:
            self.agree += 1
        else:
            self.differs(file, what, says.strip() or "nothing", shown(gives))


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple) else (value,)


def decimals(text: str) -> int:
    """Digits after the point."""
    return len(text.partition(".")[2])


def shown(value: Any) -> str:
    """A value or a value with its interval, for people."""
    texts = [
        f"{one:.4f}" if isinstance(one, float) else "nothing" if one is None else str(one) for one in _several(value)
    ]
    return texts[0] + (f" [{', '.join(texts[1:])}]" if texts[1:] else "")


def read_csv(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The comment and the lines of a CSV file of ours."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    comment = [line[2:] for line in lines if line.startswith("# ")]
    return comment, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def read_markdown(file: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The tables of a Markdown file, each with the heading above it and its lines by column."""
    heading, table = "", list[list[str]]()
    for line in [*file.read_text(encoding="utf-8", errors="replace").split("\n"), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if len(table) > 2:
            yield heading, [dict(zip(table[0], cells, strict=False)) for cells in table[2:]]
        table = []
        heading = line.lstrip("# ") if line.startswith("#") else heading


def read_latex(file: Path) -> list[dict[str, str]]:
    """The lines of the tabular of a LaTeX file, by column."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)&", line.rstrip().removesuffix(r"\\"))]
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n")
        if re.search(r"(?<!\\)&", line) and not line.startswith("%")
    ]
    return [dict(zip(rows[0], cells, strict=False)) for cells in rows[1:]]


def as_numbers(rows: Iterable[Mapping[str, str]], keys: Sequence[str]) -> Table:
    """The lines of a CSV file as recount() has them."""
    found: Table = {}
    for row in rows:
        values: dict[str, Any] = {}
        for name, text in row.items():
            try:
                values[name] = float(text) if text else None
            except ValueError:
                values[name] = text
        found[tuple(row.get(key, "") for key in keys)] = values
    return found


def csv_field(text: str) -> str:
    """A name as a CSV file is read to have it."""
    return next(csv.reader([csv_text(text)]), [""])[0]


def hold_csv(outcome: Outcome, file: Path, expected: Table) -> None:
    """Hold a CSV file against the numbers that it should have; lines of cells that are not there cannot be checked."""
    keys = KEYS[file.stem]
    there = set()
    expected = {tuple(map(csv_field, key)): values for key, values in expected.items()}
    for row in read_csv(file)[1]:
        key = tuple(row.get(name, "") for name in keys)
        name = ", ".join(filter(None, key))
        if key in there:
            outcome.differs(file, name, "this line twice", "once")
        there.add(key)
        if key not in expected:
            outcome.unknown(file, name, "a line", "no finished cell of it is there")
            continue
        for column, text in row.items():
            if column in expected[key]:
                should = expected[key][column]
                should = csv_field(should) if isinstance(should, str) else should
                outcome.hold_text(file, f"{name}: {column}", text or "", should)
    for key in sorted(expected.keys() - there):
        outcome.differs(file, ", ".join(key), "nothing", "a finished cell: the table is older, or lacks it")


def shown_tables(folder: Path) -> Iterator[tuple[Path, str, str, Any, list[dict[str, str]]]]:
    """Tables as people read them, in README.md and LaTeX files: file, kind of table, benchmark if it has one, how names
    are written there, and its lines.
    """
    readme = folder / "README.md"
    for heading, rows in read_markdown(readme) if readme.is_file() else ():
        benchmark, of_kinds, _ = heading.partition(" by kind of question")
        kind = (
            "kinds" if of_kinds else {"Efficiency": "efficiency", "Beside published figures": "published"}.get(heading)
        )
        yield readme, kind or "accuracy", benchmark if of_kinds else "", markdown_text, rows
    for name in ("accuracy", "efficiency", "published"):
        if (file := folder / f"{name}.tex").is_file():
            yield file, name, "", latex_text, read_latex(file)


def hold_shown(outcome: Outcome, folder: Path, expected: Mapping[str, Table], slack: float = 0.0) -> None:
    """Hold README.md and LaTeX files against the numbers of the tables that they show."""
    for file, kind, benchmark, written, rows in shown_tables(folder):
        lines = list(expected["published"].values())
        for number, row in enumerate(rows):
            if kind == "published":
                values = {f"measured, {k}": v for k, v in lines[number].items()} if number < len(lines) else {}
            else:
                values = shown_line(expected, kind, row, benchmark, written)
            hold_line(
                outcome, file, row, {written(column): value for column, value in values.items()}, slack, benchmark
            )


def hold_line(
    outcome: Outcome, file: Path, row: Mapping[str, str], values: Mapping[str, Any], slack: float, benchmark: str = ""
) -> None:
    """Hold a line of a shown table against values by its columns."""
    names = (row.get("model"), row.get(""), row.get("framework"), row.get("benchmark") or benchmark)
    where = ", ".join(filter(None, names)).replace("\\", "")
    for column, text in row.items():
        if column in values:
            alone = not column.startswith(("share kept", "difference"))  # these never stand without their intervals
            name = column.replace("\\", "")  # for people, without the marks of an escape
            outcome.hold_text(file, f"{where}: {name}", text, values[column], slack, alone)
        elif column not in TEXT:
            outcome.unknown(file, f"{where}: {column}", text, "no finished cell gives it")


def shown_line(
    expected: Mapping[str, Table], kind: str, row: Mapping[str, str], benchmark: str, written: Any
) -> dict[str, Any]:
    """What a line of a shown table should say, by column. kind: accuracy, kinds or efficiency; written: see above."""
    names = list(dict.fromkeys(key[0] for key in expected["benchmarks"]))
    frameworks = list(dict.fromkeys(key[0] for key in expected["accuracy"]))
    framework = row.get("framework", written(frameworks[0]) if len(frameworks) == 1 else "")
    name = row.get("benchmark") or benchmark or (written(names[0]) if len(names) == 1 else "")
    wanted = (framework, row.get("", "")) if kind == "accuracy" else (name, framework, row.get("", ""))
    table = expected["benchmarks" if kind == "kinds" else kind]
    key = next((key for key in table if tuple(map(written, key)) == wanted), None)
    if key is None:
        return {}
    line = table[key]
    if kind == "efficiency":
        spread = {column: line.get(f"{name} sd") for name, column in WITH_UNITS.items()}
        return line | {name: (line.get(name), sd) for name, sd in spread.items() if sd is not None}
    found = {"tokens kept (%)": line.get("tokens_kept"), "unparsed replies": line.get("unparsed")}
    found["n"] = line.get("questions")
    for column, quantity in ((SHARE, "share_kept"), (DIFFERENCE, "difference")):
        found[column] = None if line.get("method") == VANILLA else _with_ends(line, quantity)
    if kind == "accuracy":
        found |= {name: _with_ends(line, name) for name in [*names, "average"]}
        return found | {"accuracy (%)": _with_ends(line, names[0])} if len(names) == 1 else found
    kinds = {k[3]: values for k, values in expected["kinds"].items() if k[:3] == key}
    found |= {kind: values["accuracy"] for kind, values in kinds.items()}  # older tables do not say how many
    asked = {kind: max(v["questions"] for k, v in expected["kinds"].items() if k[0] == key[0] and k[3] == kind)
             for kind in kinds}  # fmt: skip
    return (
        found
        | {f"{kind} (n = {asked[kind]:.0f})": values["accuracy"] for kind, values in kinds.items()}
        | {"accuracy (%)": _with_ends(line, "accuracy")}
    )


def _with_ends(line: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    ends = [line[name + end] for end in ("_low", "_high") if name + end in line]
    return (line.get(name), *ends)


def hold_sentences(outcome: Outcome, file: Path, expected: Mapping[str, Table], cold: int | None = None) -> None:
    """Hold the numbers in a README's sentences against those of the tables."""
    text = file.read_text(encoding="utf-8", errors="replace")
    asked = {markdown_text(key[0]): line["questions"] for key, line in expected["benchmarks"].items()}
    for number, name in re.findall(r"(\d+) questions of ([^,;\n]+)", text.partition("; share kept")[0]):
        outcome.hold_text(file, f"questions of {name}", number, asked.get(name))
    agreement = re.compile(
        r"^- (.+) on (.+): of (\d+) questions, (\d+) answers, (\d+) scores and .* of (\w+) differ", re.M
    )
    counts = ("questions", "answers_differ", "scores_differ", "kept_differ")
    for name, benchmark, *found in agreement.findall(text):
        lines = [
            line for key, line in expected["agreement"].items() if (*map(markdown_text, key[:2]),) == (benchmark, name)
        ]
        for column, number in zip(counts, found, strict=True):
            if len(lines) == 1:
                outcome.hold_text(file, f"{name} on {benchmark}: {column}", number, lines[0].get(column))
    verdict = re.compile(
        r"^- against (.+?): (.+) points \((.+) % of the .* against (.+) %\): Tango is (.+?)(?: \(n = (\d+)\))?$", re.M
    )
    several = len({key[0] for key in expected["comparisons"]}) > 1
    lines_of = {
        markdown_text(f"{k[1]} in {k[0]}" if several else k[1]): line for k, line in expected["comparisons"].items()
    }
    for name, interval, mine, theirs, said, n in verdict.findall(text):
        if (line := lines_of.get(name)) is None:
            outcome.unknown(file, f"against {name}", interval, "no finished cell of it is there")
            continue
        ends = tuple(line[f"difference{end}"] for end in ("", "_low", "_high"))
        outcome.hold_text(file, f"against {name}: difference", interval, ends, ROUNDED)
        outcome.hold_text(file, f"against {name}: tokens kept by Tango", mine, line["tokens_kept_tango"], ROUNDED)
        outcome.hold_text(file, f"against {name}: tokens kept", theirs, line["tokens_kept_baseline"], ROUNDED)
        outcome.hold_text(file, f"against {name}: Tango is", said, line["Tango is"])
        if n:
            outcome.hold_text(file, f"against {name}: questions", n, line["questions"])
    if cold is not None and (found := re.search(r"first sample of each process \((\d+) in all\)", text)):
        outcome.hold_text(file, "first samples, which are not in the averages", found[1], cold)


def hold_one_another(outcome: Outcome, folder: Path, tables: Mapping[str, Table]) -> None:
    """Hold CSV files without cells against one another: what follows in one from numbers that stand in others."""

    def hold(name: str, key: tuple[str, ...], values: Mapping[str, Any]) -> None:
        line = tables[name].get(key, {})
        for column, value in values.items():
            if line.get(column) is not None and value is not None:
                text = f"{line[column]:.4f}" if isinstance(line[column], float) else str(line[column])
                outcome.hold_text(folder / f"{name}.csv", f"{', '.join(key)}: {column}", text, value, ROUNDED)

    accuracy, efficiency = tables["accuracy"], tables["efficiency"]
    lines = [item for table in (accuracy, tables["benchmarks"], efficiency) for item in table.items()]
    unpruned = {key[:-1]: line for key, line in lines if line.get("method") == VANILLA}
    for name, table, column in (("accuracy", accuracy, "average"), ("benchmarks", tables["benchmarks"], "accuracy")):
        for key, line in table.items():
            mine, theirs = line.get(column), unpruned.get(key[:-1], {}).get(column)
            if mine is not None and theirs:
                hold(name, key, {"share_kept": 100 * mine / theirs, "difference": mine - theirs})
    for key, line in tables["benchmarks"].items():
        of_kinds = [values for kind, values in tables["kinds"].items() if kind[:3] == key]
        total = sum(values["questions"] for values in of_kinds)
        right = sum(values["questions"] * values["accuracy"] for values in of_kinds)
        hold("benchmarks", key, {"questions": total, "accuracy": right / total} if total else {})
        hold("accuracy", key[1:], {key[0]: line["accuracy"]})
    names = {key[0] for key in tables["benchmarks"]}
    for key, line in accuracy.items():
        scores = [line[name] for name in names if line.get(name) is not None]
        hold("accuracy", key, {"average": sum(scores) / len(names)} if len(scores) == len(names) > 0 else {})
    for key, line in efficiency.items():
        parts = [line[WITH_UNITS[f"Avg_{part}_Time"]] for part in ("ViT", "Other", "LLM_Prefill")]
        hold("efficiency", key, {WITH_UNITS["Avg_Total_TTFT"]: sum(parts)} if None not in parts else {})
        base = unpruned.get(key[:-1], {})
        for title in SPED_UP:
            mine, theirs = (one.get(WITH_UNITS[title]) for one in (line, base))
            if mine and theirs and line.get("machine") == base.get("machine"):
                hold("efficiency", key, {f"{title} speed-up": theirs / mine})
    for (framework, against), line in tables["comparisons"].items():
        other = accuracy.get((framework, against), {})
        ours = ("tango", line["retention_ratio"], None)
        of_framework = [values for key, values in accuracy.items() if key[0] == framework]
        of_tango = [one for one in of_framework if (one["method"], one["retention_ratio"], one["variant"]) == ours]
        tango = of_tango[0] if of_tango else {}
        if tango.get("average") is not None and other.get("average") is not None:
            hold("comparisons", (framework, against), {"difference": tango["average"] - other["average"]})
        kept = {"tokens_kept_tango": tango.get("tokens_kept"), "tokens_kept_baseline": other.get("tokens_kept")}
        low, high = line["difference_low"], line["difference_high"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
        hold("comparisons", (framework, against), kept | {"Tango is": verdict})
