"""Agreement and divergence against tokens kept, a line a method with its intervals."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tango.calibrate.choose import Way
from tango.results.escaping import plot_text
from tango.results.plots import write_figure


def plot(ways: Sequence[Way], tolerance: float, chosen: Way | None, path: Path, command: str) -> None:
    """Write a PNG; the tolerance is a dashed line, the chosen setting a circle."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    agreement, divergence = figure.subplots(1, 2)
    for name in dict.fromkeys(way.pruner.name for way in ways):
        line = sorted((way for way in ways if way.pruner.name == name and way.questions), key=lambda way: way.kept)
        for axes, values in ((agreement, [w.agreement for w in line]), (divergence, [w.kl for w in line])):
            errors = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
            axes.errorbar([w.kept for w in line], [v.value for v in values], yerr=errors, marker="o", capsize=3,
                          label=plot_text(name))  # fmt: skip
    if chosen is not None:
        agreement.plot(chosen.kept, chosen.agreement.value, "o", markersize=14, color="black", fillstyle="none")
    agreement.axhline(100 - 100 * tolerance, linestyle="--", color="grey", label="tolerance")
    agreement.set_ylabel("same answer as unpruned (%)")
    divergence.set_ylabel("KL of the first token (nats)")
    for axes in (agreement, divergence):
        axes.set_xlabel("video tokens kept (%), mean over layers")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    write_figure(figure, path, "tango calibrate", [command])
