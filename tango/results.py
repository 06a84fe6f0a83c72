"""Tables and plots from the finished cells of a sweep: accuracy, share of the unpruned accuracy kept, tokens, time.

Differences between methods are small, so each comes with a 95 % confidence interval: the paired bootstrap, which draws
questions with replacement and compares both methods on the same draw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table as RichTable

from tango.evaluation.timing import TITLES

DRAWS = 10_000
LABELS = {
    "vanilla": "unpruned", "tango": "Tango", "topk": "top-k saliency", "visionzip": "VisionZip", "fastvid": "FastVID",
    "holitom": "HoliTom", "vidcom2": "VidCom2", "flashvid": "FlashVID", "dycoke": "DyCoke", "divprune": "DivPrune",
    "prunevid": "PruneVid", "fastv": "FastV",
}  # fmt: skip

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 1, signed: bool = False) -> str:
        if not np.isfinite(self.value):
            return "-"
        sign = "+" if signed else ""
        return f"{self.value:{sign}.{digits}f} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"


def read_cells(folder: str | Path) -> list[dict[str, Any]]:
    """All finished cells below a sweep's folder, in the order of their names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("cells/*/cell.json"))]


def label(cell: Cell) -> str:
    """How a cell is called in tables."""
    what = cell["cell"]
    name = LABELS.get(what["method"], what["method"])
    name = name if what["ratio"] is None else f"{name} {100 * what['ratio']:g} %"
    return f"{name}, {what['variant']}" if what.get("variant") else name


def tokens_kept(cell: Cell) -> float:
    """Percent of all video tokens that a cell kept, in the mean over the language model's layers; NaN without any."""
    before = sum(row["tokens_before"] for row in cell["samples"])
    kept = sum(row.get("tokens_average", row["tokens_after"]) for row in cell["samples"])
    return 100 * kept / before if before else float("nan")


def paired_scores(one: Cell, other: Cell) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores (n,) of two cells on the same questions, in the same order.

    Raises:
        ValueError: they answered different questions.
    """
    first, second = ({row["id"]: float(row["score"]) for row in cell["samples"]} for cell in (one, other))
    if first.keys() != second.keys():
        differ = sorted(map(str, first.keys() ^ second.keys()))
        raise ValueError(f"{label(one)} and {label(other)} answered different questions: {', '.join(differ[:5])}, ..")
    ids = sorted(first, key=str)
    return np.array([first[i] for i in ids]), np.array([second[i] for i in ids])


def bootstrap(
    one: NDArray[np.float64], other: NDArray[np.float64], draws: int = DRAWS, seed: int = 0
) -> tuple[Interval, Interval]:
    """Paired bootstrap of two methods' scores (n,) on the same questions, in percent.

    Returns:
        The difference of their means in points (one - other), and the share that one has of other's mean.

    Raises:
        ValueError: no scores, or of different number.
    """
    if len(one) != len(other) or len(one) == 0:
        raise ValueError(f"{len(one)} and {len(other)} scores; a paired bootstrap needs the same number, at least one")
    rng = np.random.default_rng(seed)
    # One draw at a time of all questions is a multinomial count of each: (draws, n) without an index array.
    counts = rng.multinomial(len(one), np.full(len(one), 1 / len(one)), size=draws)
    means, others = counts @ one / len(one), counts @ other / len(one)

    def interval(value: float, drawn: NDArray[np.float64]) -> Interval:
        finite = drawn[np.isfinite(drawn)]
        low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
        return Interval(100 * value, 100 * float(low), 100 * float(high))

    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.divide(means, others)
        share = float(np.divide(one.mean(), other.mean()))
    return interval(float(one.mean() - other.mean()), means - others), interval(share, shares)


def accuracy_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a cell: accuracy in percent, overall and by kind of question, and against the unpruned model.

    Columns: method, retention_ratio, questions, accuracy, one for each kind, share_kept (of the unpruned accuracy, with
    the ends of its interval), difference in points (same), tokens_kept in percent, unparsed replies.
    """
    vanilla = _unpruned(cells)
    kinds = sorted({row["kind"] for cell in cells for row in cell["samples"]})
    rows = []
    for cell in cells:
        samples = pd.DataFrame(cell["samples"])
        row: dict[str, Any] = {
            "name": label(cell),
            "method": cell["cell"]["method"],
            "variant": cell["cell"].get("variant") or "",
            "retention_ratio": 1.0 if cell["cell"]["ratio"] is None else cell["cell"]["ratio"],
            "questions": len(samples),
            "accuracy": 100 * samples["score"].mean(),
        }
        by_kind = samples.groupby("kind")["score"].mean()
        row |= {kind: 100 * by_kind[kind] if kind in by_kind else np.nan for kind in kinds}
        if vanilla is not None:
            difference, share = bootstrap(*paired_scores(cell, vanilla))
            row |= {"share_kept": share.value, "share_kept_low": share.low, "share_kept_high": share.high}
            row |= {
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
            }
        row["tokens_kept"] = tokens_kept(cell)
        row["unparsed"] = int(samples["prediction"].isna().sum())
        rows.append(row)
    return pd.DataFrame(rows)


def efficiency_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a cell, the columns of the efficiency table with their units."""
    columns = {name: f"{name} ({unit})" for name, (unit, _) in TITLES.items()}
    rows = [
        {"name": label(cell)} | {title: cell["efficiency"][name] for name, title in columns.items()} for cell in cells
    ]
    return pd.DataFrame(rows)


def comparisons(cells: Sequence[Cell]) -> pd.DataFrame:
    """Tango against each other method, and each variant of itself, at the same retention ratio: difference in points
    with its 95 % interval.

    Budgets round differently, so the shares of tokens that both really kept stand beside it.
    """
    tango = {c["cell"]["ratio"]: c for c in cells if c["cell"]["method"] == "tango" and not c["cell"].get("variant")}
    rows = []
    for baseline in cells:
        ratio = baseline["cell"]["ratio"]
        if ratio in tango and baseline is not tango[ratio]:
            difference, _ = bootstrap(*paired_scores(tango[ratio], baseline))
            verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "not distinguishable"
            rows.append(
                {
                    "against": label(baseline),
                    "retention_ratio": ratio,
                    "difference": difference.value,
                    "difference_low": difference.low,
                    "difference_high": difference.high,
                    "tokens_kept_tango": tokens_kept(tango[ratio]),
                    "tokens_kept_baseline": tokens_kept(baseline),
                    "Tango is": verdict,
                }
            )
    return pd.DataFrame(rows)


def _unpruned(cells: Sequence[Cell]) -> Cell | None:
    return next((cell for cell in cells if cell["cell"]["method"] == "vanilla"), None)


def header(cells: Sequence[Cell], command: str) -> list[str]:
    """Where the tables come from, line by line: the command that makes them, and what was run on what."""

    def all_of(pick: Any) -> str:
        values = list(dict.fromkeys(str(pick(cell["provenance"])) for cell in cells))
        return "; ".join(values)

    def commit(origin: Mapping[str, Any]) -> str:
        found = origin["commit"]
        return "unknown" if found is None else found["hash"][:12] + (" with changes" if found["dirty"] else "")

    def device(origin: Mapping[str, Any]) -> str:
        return f"{origin['device']['name']} ({origin['device']['type']}, {origin['device']['threads']} threads)"

    times = sorted(cell["provenance"]["time"] for cell in cells)
    return [
        f"made by: {command}",
        f"model: {all_of(lambda o: o['model']['pretrained'])} in {all_of(lambda o: o['model']['dtype'])}, "
        f"{all_of(lambda o: o['model']['max_frames_num'])} frames; seed {all_of(lambda o: o['seed'])}",
        f"commit: {all_of(commit)}; versions: {all_of(lambda o: _versions(o['versions']))}",
        f"device: {all_of(device)}; processes: {all_of(lambda o: o['processes'])}; run from {times[0]} to {times[-1]}",
    ]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {versions[name]}"
        for name in ("tango", "python", "torch", "transformers", "lmms-eval")
        if name in versions
    )


def write_results(
    cells: Sequence[Cell], output: str | Path, command: str, missing: Sequence[str] = (), title: str = "MotionQA"
) -> list[Path]:
    """Write accuracy.csv, efficiency.csv, comparisons.csv, README.md, accuracy.png and time.png into a folder.

    Args:
        cells: finished cells of one benchmark and model. command: what makes these files again, for their headers.
        missing: names of cells that have no result; they are named in README.md.

    Returns:
        The files.

    Raises:
        ValueError: no cells.
    """
    if not cells:
        raise ValueError("no finished cells, so there is nothing to put into tables")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    origin = header(cells, command)
    frames = {
        "accuracy": accuracy_table(cells),
        "efficiency": efficiency_frame(cells),
        "comparisons": comparisons(cells),
    }
    files = []
    for name, frame in frames.items():
        lines = [f"# {line}" for line in [*origin, 'read with pandas.read_csv(.., comment="#")']]
        content = frame.to_csv(index=False, float_format="%.4f") if len(frame) else ""
        files.append(_write(folder / f"{name}.csv", "\n".join([*lines, content])))
    files.append(_write(folder / "README.md", _markdown(cells, frames, origin, missing, title)))
    accuracy = frames["accuracy"].assign(ttft=[cell["efficiency"]["Avg_Total_TTFT"] for cell in cells])
    for name, column, axis in (
        ("accuracy", "tokens_kept", "video tokens kept (%)"),
        ("time", "ttft", "time to first token (ms)"),
    ):
        files.append(_plot(accuracy, folder / f"{name}.png", column, axis, title, origin))
    return files


def summary(cells: Sequence[Cell]) -> RichTable:
    """The accuracy table, short enough for a terminal."""
    table = RichTable(title="Accuracy, with 95 % intervals of the paired bootstrap")
    for column in ("", "tokens kept (%)", "accuracy (%)", "share kept (%)", "difference (points)"):
        table.add_column(column, justify="right" if column else "left")
    for row in accuracy_table(cells).to_dict("records"):
        compared: tuple[str, ...] = ("", "")
        if "share_kept" in row and row["method"] != "vanilla":
            share, difference = (
                Interval(*(row[name + end] for end in ("", "_low", "_high"))) for name in ("share_kept", "difference")
            )
            compared = (share.text(), difference.text(signed=True))
        table.add_row(row["name"], f"{row['tokens_kept']:.1f}", f"{row['accuracy']:.1f}", *compared)
    return table


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _markdown(
    cells: Sequence[Cell],
    frames: Mapping[str, pd.DataFrame],
    origin: Sequence[str],
    missing: Sequence[str],
    title: str,
) -> str:
    accuracy = frames["accuracy"]
    fixed = {"name", "method", "variant", "retention_ratio", "questions", "accuracy", "tokens_kept", "unparsed"}
    kinds = [c for c in accuracy.columns if c not in fixed and not c.startswith(("share_kept", "difference"))]
    shown = pd.DataFrame({"": accuracy["name"], "tokens kept (%)": accuracy["tokens_kept"].map("{:.1f}".format)})
    shown["accuracy (%)"] = accuracy["accuracy"].map("{:.1f}".format)
    for kind in kinds:
        shown[kind] = accuracy[kind].map("{:.1f}".format)
    if "share_kept" in accuracy:
        for column, name, signed in (
            ("share_kept", "share of unpruned accuracy kept (%)", False),
            ("difference", "difference (points)", True),
        ):
            shown[name] = [
                "" if method == "vanilla" else Interval(value, low, high).text(signed=signed)
                for method, value, low, high in zip(
                    accuracy["method"], *(accuracy[column + end] for end in ("", "_low", "_high")), strict=True
                )
            ]
    if accuracy["unparsed"].any():
        shown["unparsed replies"] = accuracy["unparsed"]
    efficiency = frames["efficiency"].rename(columns={"name": ""})
    parts = [
        f"# {title}",
        "\n".join(f"- {line}" for line in origin),
        f"Accuracy over {int(accuracy['questions'].max())} questions, overall and by kind; in brackets 95 % "
        "confidence intervals from the paired bootstrap, question by question against the unpruned model.",
        _table(shown),
        "![accuracy against tokens kept](accuracy.png)",
        "![accuracy against time to first token](time.png)",
        *_verdicts(frames["comparisons"]),
        "## Efficiency",
        _table(efficiency.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v).fillna("-")),
        "\n".join(f"- {name}: {meaning}" for name, (_, meaning) in TITLES.items()),
        f"There is no warm-up run; the first sample of each process ({_cold(cells)} in all) is not in the averages.",
    ]
    if missing:
        parts.append(f"**Without a result:** {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _cold(cells: Sequence[Cell]) -> int:
    return sum(int(cell["efficiency"]["cold_samples"]) for cell in cells)


def _verdicts(frame: pd.DataFrame) -> list[str]:
    """What the comparison with the baselines says, in words, whichever way it went."""
    if frame.empty:
        return []
    lines = []
    for row in frame.to_dict("records"):
        interval = Interval(row["difference"], row["difference_low"], row["difference_high"]).text(signed=True)
        kept = f"{row['tokens_kept_tango']:.1f} % of the tokens kept against {row['tokens_kept_baseline']:.1f} %"
        lines.append(f"- against {row['against']}: {interval} points ({kept}): Tango is {row['Tango is']}")
    return ["## Tango against baselines at the same retention ratio", "\n".join(lines)]


def _table(frame: pd.DataFrame) -> str:
    align = ["left", *["right"] * (frame.shape[1] - 1)]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def _plot(accuracy: pd.DataFrame, path: Path, column: str, axis: str, title: str, origin: Sequence[str]) -> Path:
    """Accuracy against a column: a line for each method, variants as dots, the unpruned model as a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = accuracy.groupby(["method", accuracy["variant"] != ""]).ngroups
    figure = Figure(figsize=(6, 4) if lines < 8 else (9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (method, varied), points in accuracy.groupby(["method", accuracy["variant"] != ""], sort=False):
        points = points.sort_values(column)
        name = LABELS.get(str(method), str(method)) + (", variants" if varied else "")
        if method == "vanilla":
            axes.axhline(float(points["accuracy"].iloc[0]), color="grey", linestyle="--", label=name)
            continue
        errors = None
        if "difference" in points:
            # The interval of the difference, around the accuracy: what matters is whether it reaches the dashed line.
            errors = [points["difference"] - points["difference_low"], points["difference_high"] - points["difference"]]
        line = "none" if varied else "-"
        axes.errorbar(
            points[column], points["accuracy"], yerr=errors, marker="o", linestyle=line, capsize=3, label=name
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(axis)
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(ncols=1 if lines < 8 else 2, fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Title": title, "Description": "\n".join(origin)})
    return path
