"""Plots of the tables: accuracy against tokens kept and against time, and what the time to first token consists of."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tango.inference.files import write_whole
from tango.results.cells import LABELS, Rows
from tango.results.escaping import plain, plot_text
from tango.runs.settings import VANILLA

KEYS = ["benchmark", "framework", "name"]
TTFT = "Avg_Total_TTFT (ms)"
PARTS = {"Avg_ViT_Time (ms)": "ViT", "Avg_Other_Time (ms)": "other", "Avg_LLM_Prefill_Time (ms)": "prefill"}
MARKERS = "osD^"  # one for each framework


def plot_all(
    rows: Rows, frames: Mapping[str, pd.DataFrame], folder: Path, title: str, lines: Sequence[str]
) -> list[Path]:
    """Write accuracy.png, time.png and parts.png; their paths.

    Args:
        frames: the tables of the lines (tango.results.tables): accuracy, benchmarks and efficiency are drawn.
        lines: where the numbers come from, for the files' description.
    """
    scores, times = frames["benchmarks"], frames["efficiency"]
    panels = [(name, scores[scores["benchmark"] == name]) for name in rows.benchmarks]
    panels = [(f"{name}, n = {frame['questions'].max()}", frame) for name, frame in panels]
    if len(panels) > 1:
        mean = frames["accuracy"].rename(columns={f"average{end}": f"accuracy{end}" for end in ("", "_low", "_high")})
        panels.append((f"mean of {len(panels)} benchmarks", mean.dropna(subset=["accuracy"])))
    both = scores.merge(times[[*KEYS, "device", "machine", TTFT]], on=KEYS).dropna(subset=[TTFT])
    names = rows.frameworks
    drawn = [
        _scatter(panels, "tokens_kept", "video tokens kept (%)", names),
        _scatter(_by_machine(both), TTFT, "time to first token (ms)", names),
        _bars(_by_machine(times), names),
    ]
    written = []
    for name, figure in zip(("accuracy", "time", "parts"), drawn, strict=True):
        figure.suptitle(plot_text(title))
        written.append(write_figure(figure, folder / f"{name}.png", title, lines))
    return written


def write_figure(figure: Figure, path: Path, title: str, lines: Sequence[str]) -> Path:
    """Write a PNG with a title and where its numbers come from; its path."""
    picture, described = io.BytesIO(), {"Title": plain(title), "Description": "\n".join(map(plain, lines))}
    figure.savefig(picture, dpi=150, metadata=described)
    write_whole(path, picture.getvalue())
    return path


def _by_machine(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A panel for each benchmark and machine, since times of different machines say nothing about methods."""
    groups = list(frame.groupby(["benchmark", "machine"], sort=False))
    return [(f"{group['benchmark'].iloc[0]}, {group['device'].iloc[0]}", group) for _, group in groups]


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(max(count, 1), 3)
    lines = -(-max(count, 1) // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, list(axes[:count])


def _scatter(panels: Sequence[tuple[str, pd.DataFrame]], column: str, axis: str, names: Sequence[str]) -> Figure:
    """Accuracy against a column: a line for each method, variants as crosses, the unpruned model as a dashed line."""
    methods = list(dict.fromkeys(method for _, frame in panels for method in frame["method"]))
    figure, panel_axes = _panels(len(panels), *((6, 4.3) if len(methods) < 8 else (8, 6)))
    for (name, frame), axes in zip(panels, panel_axes, strict=True):
        compared = "difference" in frame
        grouped = frame.groupby(["framework", "method", frame["variant"] != ""], sort=False)
        for key, points in grouped:
            framework, method, varied = str(key[0]), str(key[1]), bool(key[2])
            points = points.sort_values(column)
            called = plot_text(LABELS.get(method, method)) + (", variants" if varied else "")
            called += f" ({plot_text(framework)})" if len(names) > 1 else ""
            # One colour a method, one marker a framework: where both agree, the open one is seen around the other.
            second = names.index(framework)
            number = methods.index(method)  # the dark colours of the palette first, then the light ones
            style: dict[str, Any] = {"color": colormaps["tab20"]((2 * number + number // 10) % 20)}
            if method == VANILLA:
                style = {"color": "grey", "linestyle": ("--", ":", "-.")[second % 3]}
                axes.axhline(float(points["accuracy"].iloc[0]), label=called, **style)
                if column != "tokens_kept":  # at 100 % it would squeeze the others to one side
                    axes.plot(points[column], points["accuracy"], marker=MARKERS[second % len(MARKERS)], color="grey")
                continue
            style |= {
                "marker": "x" if varied else MARKERS[second % len(MARKERS)],
                "linestyle": "none" if varied else ("-", ":")[second > 0],
            }
            style |= {"markerfacecolor": "none", "markersize": 9} if second else {}
            errors = None
            if compared and not varied:  # variants lie close together
                # The interval of the difference, around the accuracy: does it reach the dashed line?
                ends = ("difference_low", "difference_high")
                errors = [(points[end] - points["difference"]).abs() for end in ends]
            elif not varied:
                errors = [(points[f"accuracy{end}"] - points["accuracy"]).abs() for end in ("_low", "_high")]
            axes.errorbar(points[column], points["accuracy"], yerr=errors, capsize=3, label=called, **style)
        shown = frame if column != "tokens_kept" else frame[frame["method"] != VANILLA]
        if shown[column].max() > 0:
            axes.set_xlim(0, 1.05 * shown[column].max())
        axes.set(xlabel=axis, ylabel="accuracy (%), 95 % intervals" + (" of the difference" if compared else ""))
        axes.set_title(plot_text(name), fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(ncols=1 if len(methods) < 8 else 2, fontsize="x-small")
    return figure


def _bars(panels: Sequence[tuple[str, pd.DataFrame]], names: Sequence[str]) -> Figure:
    """Stacked bars of the time to first token, one for each line of the table."""
    longest = max(len(frame) for _, frame in panels)
    figure, panel_axes = _panels(len(panels), 7, 1.5 + 0.3 * longest)
    for (name, frame), axes in zip(panels, panel_axes, strict=True):
        frame = frame.dropna(subset=list(PARTS))
        called = frame["name"] + (" (" + frame["framework"] + ")" if len(names) > 1 else "")
        called = called.map(plot_text)
        left = pd.Series(0.0, index=frame.index)
        for column, part in PARTS.items():
            axes.barh(called, frame[column], left=left, label=part)
            left = left + frame[column]
        axes.invert_yaxis()
        axes.set(xlabel="time to first token (ms)")
        axes.set_title(plot_text(name), fontsize="medium")
        axes.legend(fontsize="x-small")
    return figure
