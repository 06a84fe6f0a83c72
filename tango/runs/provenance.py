"""Where a result comes from: method, versions, commit, device, seed, command; and fingerprints of model and code.

Fingerprints decide whether an answer computed earlier may stand for one asked for now: an answer is only taken again if
the checkpoint's files and the code that made it are the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import tango
from tango.runs.settings import VARIABLES

PACKAGES = ("torch", "transformers", "accelerate", "lmms-eval", "ms-vlmeval", "tango-vlm", "av", "numpy")
SHOWN_VERSIONS = ("tango", "python", "torch", "transformers", "lmms-eval", "ms-vlmeval")
# What can change an answer or its timing. Runs, sweeps, tables and plots are made from answers and are not in it.
CODE = ("*.py", "ops/*.py", "pruners/*.py", "models/*.py", "inference/*.py")


def provenance(device: torch.device | str, **extra: Any) -> dict[str, Any]:
    """Everything a results file says about its origin, as plain JSON. `extra` (method, model, ..) comes first."""
    return {
        **extra,
        "versions": versions(),
        "commit": commit(),
        "code": code_fingerprint(),
        "device": describe_device(torch.device(device)),
        "seed": torch.initial_seed(),
        "command": command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit_text(found: Mapping[str, Any]) -> str:
    """The commit of a provenance(), for people."""
    head = found["commit"]
    return "unknown" if head is None else head["hash"][:12] + (" with changes" if head["dirty"] else "")


def device_text(found: Mapping[str, Any]) -> str:
    """The device of a provenance(), for people."""
    where = found["device"]
    return f"{where['name']} ({where['type']}, {where['threads']} threads)"


def versions_text(found: Mapping[str, Any]) -> str:
    """The versions of a provenance() that matter most, for people."""
    return ", ".join(f"{name} {found['versions'][name]}" for name in SHOWN_VERSIONS if name in found["versions"])


def versions() -> dict[str, str]:
    """Versions of Python and of those packages of PACKAGES that are installed."""
    found = {"python": platform.python_version(), "tango": tango.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def commit() -> dict[str, Any] | None:
    """The commit of this code and whether tracked files differ from it; None outside a checkout or without git."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository: only count one that tracks this file.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return None if head is None else {"hash": head, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def describe_device(device: torch.device) -> dict[str, Any]:
    """What the model ran on. `machine` is a hash of the host's name: times of different hosts are not compared."""
    described: dict[str, Any] = {"type": device.type, "cpu_count": os.cpu_count(), "threads": torch.get_num_threads()}
    described["machine"] = digest(platform.node())[:8]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_gb": round(properties.total_memory / 2**30, 1),
        }
    else:
        described["name"] = _cpu_name()
    return described


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command() -> str:
    """The command line of this process as a user would type it, with the variables that choose the method in front."""
    words = list(sys.orig_argv) or [sys.executable, *sys.argv]
    words[0] = Path(words[0]).name
    variables = [f"{name}={shlex.quote(os.environ[name])}" for name in VARIABLES if os.environ.get(name)]
    return " ".join([*variables, shlex.join(words)])


def digest(*parts: Any) -> str:
    """A short, stable hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Hash of the source files of this package that can change an answer (CODE)."""
    root = Path(tango.__file__).parent
    files = sorted({file for pattern in CODE for file in root.glob(pattern)})
    return digest([(str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def model_fingerprint(pretrained: str, revision: str = "main") -> str:
    """Hash of what a checkpoint holds: the files of a folder by name, size and time, or a hub id with its revision."""
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        return digest("folder", file_stamps(file for file in folder.rglob("*") if file.is_file()))
    return digest("hub", pretrained, revision)


def file_stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of last change (ns) of each file, sorted: cheap, and changes when a file does."""
    return sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
