"""What the samples of a run come to: failures, tokens, the paper's efficiency table, and how these are shown."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tango.runs.load import busy, load_text
from tango.runs.runner import Record
from tango.runs.screen import Screen

TITLES = {  # columns of the efficiency table, in the paper's order, and how each is computed
    "Total_runtime": (
        "s",
        "wall time of the generation loop, reading and preparing videos included; the slowest rank's",
    ),
    "Total_GPU_runtime": ("s", "sum of one generate() over all samples of all ranks"),
    "Peak_mem": ("GB", "2**30 bytes; the most that a rank held, of GPU memory, or of RAM on a CPU"),
    "Avg_ViT_Time": ("ms", "vision tower, mean over samples"),
    "Avg_Other_Time": ("ms", "projector, pooling, pruning, splicing"),
    "Avg_LLM_Prefill_Time": ("ms", "from the finished prompt embeddings to the first token"),
    "Avg_Total_TTFT": ("ms", "the three together"),
    "Avg_Decoding_Throughput": ("token/s", "tokens after the first over the time after the first"),
}
WITH_UNITS = {name: f"{name} ({unit})" for name, (unit, _) in TITLES.items()}
PARTS = {  # what the averages in ms consist of
    "Avg_ViT_Time": ("vit_s",),
    "Avg_Other_Time": ("other_s",),
    "Avg_LLM_Prefill_Time": ("prefill_s",),
    "Avg_Total_TTFT": ("vit_s", "other_s", "prefill_s"),
}


def efficiency(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The efficiency table over the records of all ranks (see tango.runs.runner.Record).

    There is no warm-up run. The first sample that each process computes pays for starting up (allocating, loading
    kernels), so it is left out of the averages as long as others are there, and counted in `cold_samples`; it stays in
    both totals. `spread` has the standard deviations over samples of the averages in ms. Samples that an earlier,
    interrupted process finished count with the time they took then. Failed samples only count in Total_runtime.
    """
    loops: dict[int, float] = defaultdict(float)
    for record in records:
        loops[record["rank"]] += record["wall_s"]
    timed = [r for r in records if r["failure"] is None and r["timing"] is not None]
    warm = [r for r in timed if not r["cold"]]
    used = [r["timing"] for r in warm or timed]

    def mean_ms(*names: str) -> float | None:
        return 1000 * sum(t[name] for t in used for name in names) / len(used) if used else None

    def spread_ms(*names: str) -> float | None:
        return 1000 * stdev(sum(t[name] for name in names) for t in used) if len(used) > 1 else None

    decode_s = sum(t["decode_s"] for t in used)
    return {
        "Total_runtime": max(loops.values(), default=0.0),
        "Total_GPU_runtime": sum(r["timing"]["generate_s"] for r in timed),
        "Peak_mem": max((r["peak_mem_gb"] for r in records), default=None),
        **{name: mean_ms(*parts) for name, parts in PARTS.items()},
        "Avg_Decoding_Throughput": sum(t["new_tokens"] - 1 for t in used) / decode_s if decode_s > 0 else None,
        "units": {name: unit for name, (unit, _) in TITLES.items()},
        "meaning": {name: meaning for name, (_, meaning) in TITLES.items()},
        "spread": {name: spread_ms(*parts) for name, parts in PARTS.items()},
        "samples_timed": len(timed),
        "samples_averaged": len(used),
        "cold_samples": len(timed) - len(warm),
        "ranks": len(loops),
    }


def efficiency_table(rows: Mapping[str, Mapping[str, Any]], caption: str = "Efficiency") -> Table:
    """A rich table with one row for each named efficiency(), standard deviations below the averages; its headings are
    short enough for 80 columns of a terminal.
    """
    table = terminal_table(caption)
    table.caption, table.caption_justify = f"columns: {', '.join(TITLES)}", "left"
    for name, (unit, _) in TITLES.items():
        words = [word for word in name.split("_") if word not in ("Avg", "Time", "Throughput")]
        table.add_column("\n".join([*words, f"({unit})"]), justify="right", no_wrap=True)
    for name, row in rows.items():
        spread = {title: f"\n±{sd:.2f}" for title, sd in row.get("spread", {}).items() if sd is not None}
        texts = ("-" if row[title] is None else f"{row[title]:.2f}{spread.get(title, '')}" for title in TITLES)
        table.add_row(Text(name), *texts)
    return table


def terminal_table(caption: str) -> Table:
    """A rich table as narrow as can be, with a first column for names, the only one to be broken into lines."""
    table = Table(title=caption, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("")
    return table


def failures(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The failed samples, for summaries and results files."""
    return [
        {"task": r.task, "doc_id": r.doc_id, "reason": r.failure, "tries": r.tries}
        for r in records
        if r.failure is not None
    ]


def token_summary(records: Iterable[Record]) -> dict[str, Any]:
    """Video tokens over all answered samples, before and after pruning and in the mean over the language model's layers
    (less than after, where it prunes too), and the share of the first that the last is (None without videos).
    """
    answered = [r for r in records if r.failure is None]
    before = sum(r.tokens.get("video_tokens_before", 0) for r in answered)
    after = sum(r.tokens.get("video_tokens_after", 0) for r in answered)
    average = sum(r.tokens.get("video_tokens_average", r.tokens.get("video_tokens_after", 0)) for r in answered)
    return {
        "video_tokens_before": before,
        "video_tokens_after": after,
        "video_tokens_average": average,
        "share_kept": average / before if before else None,
        "samples": len(answered),
    }


def report(summary: Mapping[str, Any]) -> None:
    """Print a summary: method, tokens, the efficiency table, and every failed sample."""
    console = Screen(width=None if Screen().is_terminal else 160)
    tokens, load = summary["tokens"], summary.get("load")
    kept = (
        "no video tokens"
        if tokens["share_kept"] is None
        else f"{100 * tokens['share_kept']:.1f} % of the video tokens kept"
    )
    if (size := summary["model"].get("batch_size", 1)) > 1:
        kept += f"; in batches of {size}, so that no sample has times of its own"
    console.print(efficiency_table({summary["method"]: summary["efficiency"]}, f"{summary['method']}, {kept}"))
    if load and busy(load):
        console.print(f"other processes took part of this machine, so that times say little: {load_text(load)}")
    if summary["n_resumed"]:
        console.print(
            f"{summary['n_resumed']} of {summary['n_samples']} samples were finished by an earlier run "
            "(resume=False computes anew)"
        )
    if summary["n_failed"]:
        console.print(
            f"{summary['n_failed']} of {summary['n_samples']} samples failed and were not scored:", style="bold red"
        )
        for failure in summary["failed"]:
            console.print(f"  {failure['task']} {failure['doc_id']}: {failure['reason']} ({failure['tries']} tries)")
