"""What an evaluation needs, looked for before anything is started: checkpoint, pooling head, data set, GPUs."""

import difflib
import json
import os
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from tango.models.pooling_head import DEFAULT_ID
from tango.runs.provenance import hub_snapshot

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def missing_checkpoint(source: str) -> str | None:
    """Why a checkpoint, a folder or a hub id, cannot be loaded from this machine; None if it can."""
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else f"{source}: the folder has no config.json"
    if source.count("/") != 1 or folder.parent.is_dir():
        near = difflib.get_close_matches(folder.name, [one.name for one in folder.parent.glob("*/")], 1)
        told = f"; there is {str(folder.with_name(near[0]))!r}" if near else ""
        return f"{source}: no such folder, and not a hub id of the form owner/name{told}"
    download = f"; get it with: hf download {source}"
    if not _cached(source, "config.json"):
        return f"{source}: the checkpoint is not on this machine{download}"
    index = try_to_load_from_cache(source, INDEX)
    files = {WEIGHTS}
    if isinstance(index, str):
        files = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    lost = sorted(name for name in files if not _cached(source, name))
    return f"{source}: weights are missing ({', '.join(lost)}){download}" if lost else None


def missing_pooling_head(source: str) -> str | None:
    """Why the default saliency of a LLaVA checkpoint of the hub cannot be computed; None if it can."""
    lost = missing_checkpoint(DEFAULT_ID)
    return None if lost is None else f"{lost} (the saliency of {source} is read from it; see saliency_weights)"


def missing_dataset(repository: str, pattern: str, branch: str = "main") -> str | None:
    """Why a data set of the hub is not on this machine: its branch's snapshot has no files of this pattern."""
    snapshot = hub_snapshot(repository, branch, "dataset")
    if snapshot is not None and next(snapshot.glob(pattern), None) is not None:
        return None
    of = "" if branch == "main" else f" --revision {branch}"
    return (
        f"{repository}: the data set{of and f' in its branch {branch!r}'} is not on this machine; get it with: "
        f"hf download --repo-type dataset {repository}{of}"
    )


def processes(missing: list[str]) -> int:
    """How many processes to run: NPROC, by default one a GPU, one without a GPU.

    An NPROC that is no positive number, or more than there are GPUs, goes to `missing`, and one is run.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nproc = os.environ.get("NPROC", "").strip()
    if not nproc:
        return max(1, gpus)
    if not nproc.isdigit() or int(nproc) < 1:
        missing.append(f"NPROC={nproc!r}: give a number of processes of at least 1")
    elif gpus and int(nproc) > gpus:
        missing.append(f"NPROC={nproc}: this machine has {gpus} GPUs; each process needs one of its own")
    else:
        return int(nproc)
    return 1


def _cached(repository: str, name: str) -> bool:
    return isinstance(try_to_load_from_cache(repository, name), str)
