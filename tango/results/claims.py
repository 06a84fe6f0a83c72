"""What the files of a folder of tables say (Markdown, CSV and LaTeX of tango.results.report), number by number, held
against what they should say. For tango.results.verify.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tango.results.escaping import csv_text, latex_text, markdown_text, plain
from tango.results.layout import DIFFERENCE, SHARE
from tango.results.recount import KEYS, SPED_UP, Table, ends, verdict
from tango.runs.settings import VANILLA
from tango.runs.summary import WITH_UNITS

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
ROUNDED = 1.2e-4  # what a number of a CSV file, of four decimals, and one that follows from a few of them may be off
# Columns of shown tables without our numbers.
TEXT = {"", "model", "framework", "benchmark", "quantity", "ran on", "published"}
WRITTEN = {".md": markdown_text, ".tex": latex_text, ".csv": plain}  # how names are written in shown tables
Lines = list[dict[str, str]]  # of a table in a file, each by column


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
        several = gives if isinstance(gives, tuple) else (gives,)
        if isinstance(gives, str):
            right = says.strip() == gives
        else:
            numbers = NUMBER.findall(says.strip())
            # One that is not finite has its interval left out, too.
            wanted = several if all(one is not None and math.isfinite(one) for one in several) else ()
            wanted = wanted[:1] if alone and len(numbers) == 1 else wanted
            right = len(numbers) == len(wanted) and all(
                abs(float(text) - value) <= 0.500001 * 10 ** -len(text.partition(".")[2]) + slack * max(1.0, abs(value))
                for text, value in zip(numbers, wanted, strict=True)
            )
        if right:
            self.agree += 1
            return
        texts = (f"{one:.4f}" if isinstance(one, float) else "nothing" if one is None else str(one) for one in several)
        value, *ends = texts
        self.differs(file, what, says.strip() or "nothing", value + (f" [{', '.join(ends)}]" if ends else ""))


def read_csv(file: Path) -> tuple[str, Lines]:
    """The comment and the lines of a CSV file of ours."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    comment = "\n".join(line[2:] for line in lines if line.startswith("# "))
    return comment, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def read_markdown(file: Path) -> Iterator[tuple[str, Lines]]:
    """The tables of a Markdown file, each with the heading above it."""
    heading, table = "", list[list[str]]()
    for line in [*file.read_text(encoding="utf-8", errors="replace").split("\n"), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if len(table) > 2:
            yield heading, [dict(zip(table[0], cells, strict=False)) for cells in table[2:]]
        table = []
        heading = line.lstrip("# ") if line.startswith("#") else heading


def read_latex(file: Path) -> Lines:
    """The lines of the tabular of a LaTeX file."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)&", line.rstrip().removesuffix(r"\\"))]
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n")
        if re.search(r"(?<!\\)&", line) and not line.startswith("%")
    ]
    return [dict(zip(rows[0], cells, strict=False)) for cells in rows[1:]]


def made_by(text: str) -> str:
    """The command that a file names as the one that makes it; empty without."""
    found = re.search(r"^(?:[-#%] |.*\. )?made by:? (.+)$", text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


def as_numbers(lines: Lines, keys: Sequence[str]) -> Table:
    """The lines of a CSV file as recount() has them."""

    def number(text: str) -> float | str | None:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    return {
        tuple(line.get(key, "") for key in keys): {name: number(text) for name, text in line.items()} for line in lines
    }


def hold_csv(outcome: Outcome, file: Path, lines: Lines, expected: Table) -> None:
    """Hold a CSV file against the numbers that it should have; lines of cells that are not there cannot be checked."""

    def as_read(text: str) -> str:
        return (next(csv.reader([csv_text(text)])) or [""])[0]  # of an empty field alone the reader makes no field

    there = set()
    expected = {tuple(map(as_read, key)): values for key, values in expected.items()}
    for line in lines:
        key = tuple(line.get(name, "") for name in KEYS[file.stem])
        name = ", ".join(filter(None, key))
        if key in there:
            outcome.differs(file, name, "this line twice", "once")
        there.add(key)
        if key not in expected:
            outcome.unknown(file, name, "a line", "no finished cell of it is there")
            continue
        for column, text in line.items():
            if column in expected[key]:
                should = expected[key][column]
                should = as_read(should) if isinstance(should, str) else should
                outcome.hold_text(file, f"{name}: {column}", text or "", should)
    for key in sorted(expected.keys() - there):
        outcome.differs(file, ", ".join(key), "nothing", "a finished cell: the table is older, or lacks it")


def hold_shown(outcome: Outcome, folder: Path, expected: Mapping[str, Table], slack: float = 0.0) -> None:
    """Hold README.md and LaTeX files against the numbers of the tables that they show."""
    figures = list(expected["published"].values())
    for file, kind, benchmark, lines in _shown_tables(folder):
        for number, line in enumerate(lines):
            if kind == "published":
                values = {f"measured, {k}": v for k, v in figures[number].items()} if number < len(figures) else {}
            else:
                values = shown_line(expected, kind, file, line, benchmark)
            hold_line(outcome, file, line, values, slack, benchmark)


def _shown_tables(folder: Path) -> Iterator[tuple[Path, str, str, Lines]]:
    """Tables as people read them: file, kind of table, benchmark if it has one, and lines."""
    readme = folder / "README.md"
    for heading, lines in read_markdown(readme) if readme.is_file() else ():
        benchmark, of_kinds, _ = heading.partition(" by kind of question")
        kind = {"Efficiency": "efficiency", "Beside published figures": "published"}.get(heading, "accuracy")
        yield readme, "kinds" if of_kinds else kind, benchmark if of_kinds else "", lines
    for name in ("accuracy", "efficiency", "published"):
        if (file := folder / f"{name}.tex").is_file():
            yield file, name, "", read_latex(file)


def hold_line(
    outcome: Outcome, file: Path, line: Mapping[str, str], values: Mapping[str, Any], slack: float, benchmark: str = ""
) -> None:
    """Hold a line of a shown table against values by its columns."""
    names = (line.get("model"), line.get(""), line.get("framework"), line.get("benchmark") or benchmark)
    where = ", ".join(filter(None, names)).replace("\\", "")
    written = WRITTEN[file.suffix]
    values = {written(column): written(value) if isinstance(value, str) else value for column, value in values.items()}
    for column, text in line.items():
        if column in values:
            alone = not column.startswith(("share kept", "difference"))  # these never stand without their intervals
            name = column.replace("\\", "")  # for people, without the marks of an escape
            outcome.hold_text(file, f"{where}: {name}", text, values[column], slack, alone)
        elif column not in TEXT:
            outcome.unknown(file, f"{where}: {column}", text, "no finished cell gives it")


def shown_line(
    expected: Mapping[str, Table], kind: str, file: Path, shown: Mapping[str, str], benchmark: str = ""
) -> dict[str, Any]:
    """What a line of a shown table should say, by column. kind: accuracy, kinds or efficiency."""
    written = WRITTEN[file.suffix]
    names = list(dict.fromkeys(key[0] for key in expected["benchmarks"]))
    frameworks = list(dict.fromkeys(key[0] for key in expected["accuracy"]))
    framework = shown.get("framework", written(frameworks[0]) if len(frameworks) == 1 else "")
    name = shown.get("benchmark") or benchmark or (written(names[0]) if len(names) == 1 else "")
    wanted = (framework, shown.get("", "")) if kind == "accuracy" else (name, framework, shown.get("", ""))
    table = expected["benchmarks" if kind == "kinds" else kind]
    key = next((key for key in table if tuple(map(written, key)) == wanted), None)
    if key is None:
        return {}
    line = table[key]

    def with_ends(column: str) -> tuple[Any, ...]:
        return line.get(column), *(line[column + end] for end in ("_low", "_high") if column + end in line)

    if kind == "efficiency":
        spread = {column: line.get(f"{title} sd") for title, column in WITH_UNITS.items()}
        return line | {column: (line.get(column), sd) for column, sd in spread.items() if sd is not None}
    found = {"tokens kept (%)": line.get("tokens_kept"), "unparsed replies": line.get("unparsed")}
    found["n"] = line.get("questions")
    for column, quantity in ((SHARE, "share_kept"), (DIFFERENCE, "difference")):
        found[column] = None if line.get("method") == VANILLA else with_ends(quantity)
    if kind == "accuracy":
        found |= {name: with_ends(name) for name in [*names, "average"]}
        return found | {"accuracy (%)": with_ends(names[0])} if len(names) == 1 else found
    for (*of, name), values in expected["kinds"].items():
        if tuple(of) == key:
            alike = [other["questions"] for k, other in expected["kinds"].items() if (k[0], k[3]) == (key[0], name)]
            # Older tables do not say how many.
            found |= dict.fromkeys((name, f"{name} (n = {max(alike):.0f})"), values["accuracy"])
    return found | {"accuracy (%)": with_ends("accuracy")}


def hold_sentences(outcome: Outcome, folder: Path, expected: Mapping[str, Table], cold: int | None = None) -> None:
    """Hold the numbers in README.md's sentences against those of the tables."""
    if not (file := folder / "README.md").is_file():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    asked = {markdown_text(key[0]): line["questions"] for key, line in expected["benchmarks"].items()}
    over = r"(\d+) questions of (.+?)(?:, (?=\d+ questions of |with )|$)"
    for number, name in re.findall(over, text.partition("; share kept")[0], re.MULTILINE):
        outcome.hold_text(file, f"questions of {name}", number, asked.get(name))
    agreement = r"^- (.+) on (.+): of (\d+) questions, (\d+) answers, (\d+) scores and .* of (\w+) differ"
    counts = ("questions", "answers_differ", "scores_differ", "kept_differ")
    for name, benchmark, *numbers in re.findall(agreement, text, re.MULTILINE):
        keys = [key for key in expected["agreement"] if (*map(markdown_text, key[:2]),) == (benchmark, name)]
        for column, number in zip(counts, numbers, strict=True) if len(keys) == 1 else ():
            outcome.hold_text(
                file, f"{name} on {benchmark}: {column}", number, expected["agreement"][keys[0]].get(column)
            )
    against = r"^- against (.+?): (.+) points \((.+) % of the .* against (.+) %\): Tango is (.+?)(?: \(n = (\d+)\))?$"
    several = len({key[0] for key in expected["comparisons"]}) > 1
    lines = {
        markdown_text(f"{k[1]} in {k[0]}" if several else k[1]): line for k, line in expected["comparisons"].items()
    }
    for name, interval, mine, theirs, said, n in re.findall(against, text, re.MULTILINE):
        if (line := lines.get(name)) is None:
            outcome.unknown(file, f"against {name}", interval, "no finished cell of it is there")
            continue
        ends = tuple(line[f"difference{end}"] for end in ("", "_low", "_high"))
        for what, says, gives in (
            ("difference", interval, ends),
            ("tokens kept by Tango", mine, line["tokens_kept_tango"]),
            ("tokens kept", theirs, line["tokens_kept_baseline"]),
            ("Tango is", said, line["Tango is"]),
        ):
            outcome.hold_text(file, f"against {name}: {what}", says, gives, ROUNDED)
        if n:
            outcome.hold_text(file, f"against {name}: questions", n, line["questions"])
    if cold is not None and (found := re.search(r"first sample of each process \((\d+) in all\)", text)):
        outcome.hold_text(file, "first samples, which are not in the averages", found[1], cold)


def hold_one_another(outcome: Outcome, folder: Path, tables: Mapping[str, Table]) -> None:
    """Hold CSV files without cells against one another: what follows in one from numbers that stand in others."""
    for name, key, values in _follow(tables):
        line = tables[name].get(key, {})
        for column, value in values.items():
            if line.get(column) is not None and value is not None:
                text = f"{line[column]:.4f}" if isinstance(line[column], float) else str(line[column])
                outcome.hold_text(folder / f"{name}.csv", f"{', '.join(key)}: {column}", text, value, ROUNDED)


def _follow(tables: Mapping[str, Table]) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """Tables' names, lines and columns, as they follow from others. None: from a number that is not there."""
    accuracy, scores, efficiency = tables["accuracy"], tables["benchmarks"], tables["efficiency"]
    for name, column in (("accuracy", "average"), ("benchmarks", "accuracy")):
        for key, line, base in _with_unpruned(tables[name]):
            mine, theirs = line.get(column), base.get(column)
            if mine is not None and theirs:
                yield name, key, {"share_kept": 100 * mine / theirs, "difference": mine - theirs}
    for key, line in scores.items():
        of_kinds = [values for kind, values in tables["kinds"].items() if kind[:3] == key]
        total = sum(values["questions"] for values in of_kinds)
        right = sum(values["questions"] * values["accuracy"] for values in of_kinds)
        yield "benchmarks", key, {"questions": total, "accuracy": right / total} if total else {}
        yield "accuracy", key[1:], {f"{key[0]}{end}": line.get(f"accuracy{end}") for end in ("", "_low", "_high")}
    for name in ("benchmarks", "kinds"):
        for key, line in tables[name].items():
            if line.get("accuracy") is not None and line.get("questions"):
                limits = ends(line["accuracy"], int(line["questions"]))
                yield name, key, dict(zip(("accuracy_low", "accuracy_high"), limits, strict=True))
    names = {key[0] for key in scores}
    for key, line in accuracy.items():
        kept: list[Any] = [one.get("tokens_kept") for of, one in scores.items() if of[1:] == key]
        yield "accuracy", key, {"tokens_kept": sum(kept) / len(kept) if kept and None not in kept else None}
        found = [line[name] for name in names if line.get(name) is not None]
        yield "accuracy", key, {"average": sum(found) / len(names)} if len(found) == len(names) > 0 else {}
    for key, line, base in _with_unpruned(efficiency):
        parts = [line[WITH_UNITS[f"Avg_{part}_Time"]] for part in ("ViT", "Other", "LLM_Prefill")]
        yield "efficiency", key, {WITH_UNITS["Avg_Total_TTFT"]: sum(parts) if None not in parts else None}
        for title in SPED_UP:
            mine, theirs = (one.get(WITH_UNITS[title]) for one in (line, base))
            if mine and theirs and line.get("machine") == base.get("machine"):
                yield "efficiency", key, {f"{title} speed-up": theirs / mine}
    for (framework, against), line in tables["comparisons"].items():
        other, wanted = accuracy.get((framework, against), {}), ("tango", line["retention_ratio"], None)
        of_framework = [one for key, one in accuracy.items() if key[0] == framework]
        same = (one for one in of_framework if (one["method"], one["retention_ratio"], one["variant"]) == wanted)
        tango = next(same, {})
        values = {
            f"tokens_kept_{which}": one.get("tokens_kept") for which, one in (("tango", tango), ("baseline", other))
        }
        if tango.get("average") is not None and other.get("average") is not None:
            values = {"difference": tango["average"] - other["average"]} | values
        yield "comparisons", (framework, against), values | {"Tango is": verdict(line)}


def _with_unpruned(table: Table) -> Iterator[tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]]:
    """Each line with the unpruned model's in the same framework, which is empty where there is none."""
    unpruned = {key[:-1]: line for key, line in table.items() if line.get("method") == VANILLA}
    return ((key, line, unpruned.get(key[:-1], {})) for key, line in table.items())
