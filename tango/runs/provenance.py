"""Where a result comes from: method, versions, commit, device, seed, command; and fingerprints of model and code.

Fingerprints decide whether an answer computed earlier may stand for one asked for now: an answer is only taken again if
the checkpoint's files and the code that made it are the same. They are of contents, so that a folder may be moved; of a
hub's repository, of the commit; of code, of the files that a method and a family of models need, so that another
method changes nothing.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE

import tango
from tango.models import FAMILIES
from tango.models.pooling_head import DEFAULT_ID
from tango.pruners import REGISTRY
from tango.runs.hooks import mask
from tango.runs.settings import VARIABLES

# That an answer follows from: the model, and the pixels that it is given.
LIBRARIES = ("torch", "transformers", "av", "torchvision", "pillow")
PACKAGES = (*LIBRARIES, "accelerate", "lmms-eval", "ms-vlmeval", "tango-vlm", "numpy")
SHOWN_VERSIONS = ("tango", "python", "torch", "transformers", "lmms-eval", "ms-vlmeval")
# What can change an answer or its timing. Runs, sweeps, tables and plots are made from answers and are not in it.
CODE = ("*.py", "ops/*.py", "pruners/*.py", "models/*.py", "inference/*.py")
ANSWERING = ("inference/chat.py", "models/__init__.py")  # with what these import, a method's and a family's file
FAMILY_LINE = re.compile(
    rb'^ *"\w+": "tango\.models\.\w+",\n', re.MULTILINE
)  # of FAMILIES: another one changes nothing
LOOSE = {".md", ".lock", ".incomplete"}  # of a checkpoint's folder: not read by anything


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
    return mask(" ".join([*variables, shlex.join(words)]))


def digest(*parts: Any) -> str:
    """A short, stable hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@lru_cache
def code_fingerprint(method: str | None = None, family: str | None = None) -> str:
    """Hash of the source files of this package that can change an answer (CODE).

    Args:
        method: only those that a method of the registry needs, or any other name for the unpruned model; None: all.
        family: the class of a model; with a method, only its family's. None: all families'.
    """
    root = Path(tango.__file__).parent
    files = {file for pattern in CODE for file in root.glob(pattern)}
    if method is not None:
        wanted = [root / name for name in ANSWERING]
        if method in REGISTRY:
            wanted.append(_file_of(root, REGISTRY[method].__module__))
        wanted += [_file_of(root, module) for name, module in FAMILIES.items() if family in (None, name)]
        files = _with_imports(root, wanted)
    hashes = {file: hashlib.sha256(FAMILY_LINE.sub(b"", file.read_bytes())).hexdigest() for file in files}
    return digest(sorted((str(file.relative_to(root)), found) for file, found in hashes.items()))


def served_fingerprint() -> str:
    """Hash of what else an answer of a server follows from: how it is asked, and the plugin of a checkout."""
    root = Path(tango.__file__).parent
    return files_fingerprint(
        [root / "runs" / "served.py", *root.parent.glob("vllm-plugin/tango_vllm/*.py")], root.parent
    )


def _file_of(root: Path, module: str) -> Path:
    place = root.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _with_imports(root: Path, files: Iterable[Path]) -> set[Path]:
    """Files of this package and what they import of it, directly or not. The table of all methods is no part of one."""
    found: set[Path] = set()
    left = list(files)
    while left:
        file = left.pop()
        if file in found or file == root / "pruners" / "__init__.py" or not file.is_file():
            continue
        found.add(file)
        left += [_file_of(root, module) for module in _imports(file)]
    return found


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("tango."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tango"):
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files_fingerprint(files: Iterable[Path], root: Path | None = None) -> str:
    """Hash of what files hold and of their names, below `root` if it is given."""
    files = sorted(files)
    with ThreadPoolExecutor(8) as readers:  # hashing lets other threads run
        contents = list(readers.map(content_hash, files))
    names = [file.name if root is None else file.relative_to(root).as_posix() for file in files]
    return digest(sorted(zip(names, contents, strict=True)))


def content_hash(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; of one process's files only once each, as long as they stay."""
    stat = file.stat()
    return _content_hash(file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _content_hash(file: Path, *stamp: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def model_fingerprint(pretrained: str, revision: str = "main") -> str:
    """Hash of what a checkpoint holds: the contents of a folder or a file, or the commit of a hub id.

    Of a hub id that is not on this machine, its name and revision are all that there is to know.
    """
    place = Path(os.path.expanduser(pretrained))
    if place.is_dir():
        return files_fingerprint(_checkpoint_files(place), place)
    if place.is_file():
        return content_hash(place)
    return digest("hub", pretrained, hub_commit(pretrained, revision) or revision)


def _checkpoint_files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix not in LOOSE)
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def head_fingerprint(settings: Mapping[str, Any], family: str) -> str | None:
    """Hash of weights that a method reads beside the model's: what `saliency_weights` names, or for a LLaVA the default
    pooling head, if its commit is known; None for methods without.
    """
    if "saliency_weights" not in settings:
        return None
    if settings["saliency_weights"] is not None:
        return model_fingerprint(str(settings["saliency_weights"]))
    return hub_commit(DEFAULT_ID) if family.startswith("Llava") else None


def hub_commit(repository: str, revision: str = "main", kind: str = "model") -> str | None:
    """The commit that a branch of a hub's repository is at on this machine; None if its snapshot is not here."""
    snapshot = hub_snapshot(repository, revision, kind)
    return None if snapshot is None else snapshot.name


def hub_snapshot(repository: str, revision: str = "main", kind: str = "model") -> Path | None:
    """The folder of a hub's repository on this machine; None if it is not here.

    Args:
        kind: model or dataset. revision: a branch, a tag or a commit.
    """
    folder = Path(HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}"
    branch = folder / "refs" / revision
    commit = branch.read_text(encoding="utf-8").strip() if branch.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
