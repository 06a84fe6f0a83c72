"""What one evaluation comes to, whichever framework ran it, and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from tango.runs import provenance
from tango.runs.efficiency import efficiency, efficiency_table
from tango.runs.runner import Record, failures, token_summary
from tango.runs.settings import MethodSettings


def summarise(
    records: Sequence[Record],
    settings: MethodSettings,
    device: torch.device,
    *,
    model: Mapping[str, Any],
    processes: int,
    run: str,
) -> dict[str, Any]:
    """The summary of an evaluation as plain JSON, with one entry a sample under "samples".

    Args:
        records: of all processes. model: how the model was loaded. run: its digest, see EvaluationRun.
    """
    entries = [record.to_dict() for record in records]
    failed = failures(records)
    return {
        **provenance.provenance(device, **settings.describe(), model=dict(model)),
        "processes": processes,
        "run": run,
        "n_samples": len(records),
        "n_failed": len(failed),
        "n_resumed": sum(record.resumed for record in records),
        "failed": failed,
        "tokens": token_summary(records),
        "efficiency": efficiency(entries),
        "samples": entries,
    }


def report(summary: Mapping[str, Any]) -> None:
    """Print a summary: method, tokens, the efficiency table, and every failed sample."""
    console = Console(width=None if Console().is_terminal else 160)
    tokens = summary["tokens"]
    kept = (
        "no video tokens"
        if tokens["share_kept"] is None
        else f"{100 * tokens['share_kept']:.1f} % of the video tokens kept"
    )
    console.print(efficiency_table({summary["method"]: summary["efficiency"]}, f"{summary['method']}, {kept}"))
    if summary["n_resumed"]:
        console.print(
            f"{summary['n_resumed']} of {summary['n_samples']} samples were finished by an earlier run "
            "(resume=False computes anew)"
        )
    if summary["n_failed"]:
        console.print(
            f"[bold red]{summary['n_failed']} of {summary['n_samples']} samples failed and were not scored:[/]"
        )
        for failure in summary["failed"]:
            console.print(
                f"  {failure['task']} {failure['doc_id']}: {escape(failure['reason'])} ({failure['tries']} tries)"
            )
