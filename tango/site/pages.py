"""The data of the site: one page for the table, and for each run and benchmark small pages of samples."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tango import __version__
from tango.results.cells import accuracy, answers, device, label, machine, setting, setting_text, tokens_kept
from tango.results.statistics import Interval, Scores, bootstrap, wilson
from tango.results.tables import paired_scores
from tango.runs.provenance import commit_text, versions_text
from tango.runs.summary import TITLES
from tango.site.frames import Drawn, kept_hash
from tango.site.runs import Run, reference

ROWS = 250  # samples in a file: a screen shows 20, of anywhere
TTFT = "Avg_Total_TTFT"


def pages(
    runs: Sequence[Run], drawn: Drawn, command: str, remarks: Sequence[str], opened: Sequence[int]
) -> Iterator[tuple[str, Any]]:
    """Names and contents of all data files.

    index: all runs. b<n>: the questions of a benchmark by their ids, whose order is that of everything else.
    q<n>-<page>: their texts. r<n>: each question's score and answer in a run, r<n>-<page>: its reply and tokens.
    v<n>: a video's strip and what was kept of it.
    """
    names = list(dict.fromkeys(run.benchmark for run in runs))
    strips = {name: number for number, name in enumerate(drawn.strips)}
    asked: list[list[str]] = []
    codes: list[dict[str, int]] = []
    for number, name in enumerate(names):
        of_it = [run for run in runs if run.benchmark == name]
        rows = {key: row for run in of_it for key, row in answers(run.cell).items()}
        texts = {key: text for run in reversed(of_it) for key, text in run.texts.items()}
        ids = sorted(rows)
        asked.append(ids)
        given = dict.fromkeys(str(row["prediction"]) for run in of_it for row in run.cell["samples"])
        codes.append({answer: code for code, answer in enumerate(given)})
        kinds = sorted({str(row["kind"]) for row in rows.values()})
        places = {kind: place for place, kind in enumerate(kinds)}
        yield f"b{number}", {"ids": ids, "kinds": kinds, "kind": [places[str(rows[key]["kind"])] for key in ids]}
        golds = [[rows[key].get("answer"), texts[key].question if key in texts else ""] for key in ids]
        yield from _in_pages(f"q{number}", golds)
    scored = []
    for number, run in enumerate(runs):
        rows = answers(run.cell)
        benchmark = names.index(run.benchmark)
        ordered = [rows.get(key) for key in asked[benchmark]]
        scores = [None if row is None else float(row["score"]) for row in ordered]
        scored.append((benchmark, np.array(scores, dtype=float)))
        answered = [None if row is None else codes[benchmark][str(row["prediction"])] for row in ordered]
        whole = [score if score is None or score % 1 else int(score) for score in scores]
        yield f"r{number}", {"scores": whole, "answers": answered}
        yield from _in_pages(f"r{number}", [_reply(run, number, row, drawn, strips) for row in ordered])
    for name, strip in drawn.strips.items():
        shown = {"file": strip.file, "frames": strip.frames, "grid": strip.grid, "kept": strip.kept}
        yield f"v{strips[name]}", shown
    lines = [_line(runs, run, names) for run in runs]
    yield (
        "index",
        {
            "command": command, "version": __version__, "remarks": list(remarks), "rows": ROWS, "benchmarks": names,
            "runs": lines, "pairs": _pairs(scored), "opened": list(opened),
            "titles": {name: [unit, meaning] for name, (unit, meaning) in TITLES.items()},
        },
    )  # fmt: skip


def _in_pages(name: str, lines: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for page, start in enumerate(range(0, len(lines), ROWS)):
        yield f"{name}-{page}", lines[start : start + ROWS]


def _reply(run: Run, number: int, row: Any, drawn: Drawn, strips: dict[str, int]) -> list[Any] | None:
    """Answer, reply, tokens before and after, the number of the video's strip, and the hash of what was kept."""
    if row is None:
        return None
    text, name = run.texts.get(str(row["id"])), drawn.name_of(number, run, row)
    return [
        row["prediction"],
        text.reply if text is not None else None,
        row["tokens_before"],
        row["tokens_after"],
        None if name is None else strips[name],
        kept_hash(row),
    ]


def _line(runs: Sequence[Run], run: Run, names: Sequence[str]) -> dict[str, Any]:
    cell, origin = run.cell, run.cell["provenance"]
    what, against = cell["cell"], reference(runs, run)
    base = None if against is None else runs[against].cell
    line = {
        "place": run.place, "label": label(cell), "framework": what["framework"], "method": what["method"],
        "ratio": what["ratio"], "variant": what.get("variant") or "", "benchmark": names.index(run.benchmark),
        "model": setting_text(setting(cell)),
        "n": len(cell["samples"]), "unparsed": sum(row["prediction"] is None for row in cell["samples"]),
        "accuracy": _ends(wilson(accuracy(cell) / 100, len(cell["samples"]))), "kept": _finite(tokens_kept(cell)),
        "kinds": _kinds(cell), "against": against, "difference": None, "share": None, "speed": None,
        "texts": bool(run.texts),
    }  # fmt: skip
    if base is not None and base is not cell:
        difference, share = bootstrap([paired_scores(cell, base)])
        line |= {"difference": _ends(difference), "share": _ends(share)}
    times_of = cell["efficiency"]
    line["times"] = {name: times_of[name] for name in TITLES}
    if base is not None and machine(base) == machine(cell) and times_of[TTFT] and base["efficiency"][TTFT]:
        line["speed"] = base["efficiency"][TTFT] / times_of[TTFT]
    facts = {
        "made by": shown_command(str(origin.get("command", "unknown"))), "device": device(cell),
        "versions": versions_text(origin), "commit": commit_text(origin), "when": origin["time"],
        "seed": origin["seed"], "settings": origin.get("settings") or {}, "settings from": origin.get("sources") or {},
        "all versions": origin["versions"], "machine": origin["device"], "load": origin.get("load"), "file": run.place,
    }  # fmt: skip
    return line | {"facts": facts}


def shown_command(command: str) -> str:
    """A command with its files as from the folder that all of them are in, since that is of one machine alone."""
    paths = re.findall(r"(?<![\w./-])/[^\s,;=:'\"]+", command)
    common = os.path.commonpath(paths) if len(paths) > 1 else "/"
    return command.replace(f"{common}/", "") if len(common) > 1 else command


def _kinds(cell: Any) -> list[list[Any]]:
    scores: dict[str, list[float]] = {}
    for row in cell["samples"]:
        scores.setdefault(str(row["kind"]), []).append(float(row["score"]))
    return [
        [kind, len(of_kind), *_ends(wilson(sum(of_kind) / len(of_kind), len(of_kind)))]
        for kind, of_kind in sorted(scores.items())
    ]


def _pairs(scored: Sequence[tuple[int, Scores]]) -> dict[str, list[Any]]:
    """The difference of each two runs on the same questions with its interval, by their numbers.

    Args:
        scored: of each run its benchmark's number and its scores, NaN for what it was not asked.
    """
    known: dict[bytes, list[Any]] = {}
    found = {}
    for i, (benchmark, first) in enumerate(scored):
        for j, (other, second) in enumerate(scored):
            if i == j or benchmark != other or not np.array_equal(np.isnan(first), np.isnan(second)):
                continue
            both = np.stack([first, second])[:, ~np.isnan(first)]
            key = b"".join(part.tobytes() for part in np.unique(both, axis=1, return_counts=True))
            if key not in known:  # the interval follows from how often which two scores were given
                known[key] = _ends(bootstrap([(both[0], both[1])])[0])
            found[f"{i},{j}"] = known[key]
    return found


def _ends(interval: Interval) -> list[Any]:
    return [_finite(value) for value in (interval.value, interval.low, interval.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
