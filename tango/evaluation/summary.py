"""What one evaluation comes to, whichever framework ran it: what it is known by, its summary, and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.markup import escape

from tango.evaluation import provenance
from tango.evaluation.runner import Record, failures, token_summary
from tango.evaluation.settings import MethodSettings
from tango.evaluation.timing import efficiency, efficiency_table


def run_digest(
    settings: MethodSettings,
    described: Mapping[str, Any],
    device: torch.device,
    seed: int,
    pretrained: str,
    revision: str,
    *more: Any,
) -> str:
    """Hash of all that an answer depends on beside its prompt: answers of one run may stand in for another's of the
    same digest. `more`: whatever else matters, as JSON values.
    """
    return provenance.digest(
        dict(described),
        settings.method,
        settings.describe()["settings"],
        device.type,
        seed,
        *more,
        provenance.model_fingerprint(pretrained, revision),
        provenance.code_fingerprint(),
        torch.__version__,
        transformers.__version__,
    )


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
        records: of all processes. model: how the model was loaded. run: see run_digest().
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
