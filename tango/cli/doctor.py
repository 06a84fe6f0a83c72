"""`tango doctor`: what this machine has and lacks, and what to do about each.

A finding is about one thing. Findings that the shipped model, videos and commands stand on are `needed`; the exit code
is 1 if one of those is not well. The rest tells what else could be run here.
"""

import itertools
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tango.cli.answering import check_model
from tango.cli.common import BAD_INPUT, FAILED, OK, Json, console, print_json, stdout_for_json, steps
from tango.motionqa.shipped import DATA, MODEL, checkout
from tango.sweeps.frameworks import FRAMEWORKS, QUESTIONS

EXAMPLES = ("tango doctor", "tango doctor --model Qwen/Qwen2.5-VL-7B-Instruct", "tango doctor --json")
WELL, MISSING, LITTLE = "ok", "missing", "too little"
COLOURS = {WELL: "green", MISSING: "red", LITTLE: "yellow"}
SHOWN = ("", "cli", "eval")  # extras of this package whose parts are listed; the last for some commands alone
GIB = 2**30
DRIVER = Path("/proc/driver/nvidia/version")
# Parameters of checkpoints that are not on this machine; of those that are, the files tell.
PUBLISHED = {
    "lmms-lab/llava-onevision-qwen2-0.5b-ov": 0.89e9,
    "lmms-lab/llava-onevision-qwen2-7b-ov": 8.03e9,
    "lmms-lab/LLaVA-Video-7B-Qwen2": 8.03e9,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29e9,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77e9,
}
PUBLISHED_BYTES = 2  # those are stored in bfloat16
ROOM = 1.3  # a video's tokens and their activations need about this much beyond the weights
RESULTS_GIB = 1.0  # of disk for results


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, ok or missing or too little, what was found, and what to do about it."""

    group: str
    name: str
    status: str
    found: str
    advice: str = ""
    needed: bool = False


def judged(
    well: bool, group: str, name: str, found: str, advice: str, needed: bool = False, otherwise: str = MISSING
) -> Finding:
    """A finding that is well, and then needs no advice, or is not."""
    return Finding(group, name, WELL if well else otherwise, found, "" if well else advice, needed)


def doctor(
    models: Annotated[list[str] | None, typer.Option("--model", help="Look at these models alone.")] = None,
    as_json: Json = False,
) -> int:
    """Look at what is installed, at models, data sets, memory and disk, and say what to do about what is not well.

    Lines marked * are what the shipped model and commands need, and models that are named: exit code 1 if one of them
    is not ok, 2 if a model that was named is missing.
    """
    for model in models or []:
        check_model(model)
    with stdout_for_json(as_json), steps(4) as step:
        findings: list[Finding] = []
        for name, look in (
            ("packages", packages), ("PyTorch and GPUs", accelerators), ("frameworks and data", benchmarks),
            ("models, memory, disk", lambda: resources(models or [])),
        ):  # fmt: skip
            step(name)
            findings += look()
    well = all(finding.status == WELL for finding in findings if finding.needed)
    lacking = any(finding.name in (models or []) and finding.status == MISSING for finding in findings)
    status = OK if well else BAD_INPUT if lacking else FAILED
    if as_json:
        print_json({"ok": well, "findings": [asdict(finding) for finding in findings]})
        return status
    screen = console()
    shown = Table(show_header=False, box=None)
    for _ in range(4):
        shown.add_column(overflow="fold")
    for group, members in itertools.groupby(findings, lambda one: one.group):
        shown.add_row("", Text(f"\n{group}", style="bold"))
        for one in members:
            mark = "* " if one.needed else "  "
            coloured = Text(one.status, style=COLOURS[one.status])
            shown.add_row(coloured, mark + one.name, one.found, Text(one.advice, style="cyan"))
    screen.print(shown)
    works = "These models work here." if models else "The shipped model and commands work here."
    screen.print(f"\n{works}" if well else "\nWhat is marked * has to be ok.")
    return status


def packages() -> Iterator[Finding]:
    """Python, and the packages this one requires, by what its own metadata asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted, requirements = declared()
    version = platform.python_version()
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    yield judged(fits, "Python", "Python", version, f"use Python {wanted}", True, LITTLE)
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        extra = next((one for one in SHOWN if marker is None or marker.evaluate({"extra": one})), None)
        if extra is None or requirement.name == "tango-vlm":
            continue
        needed, specifier = extra != "eval", requirement.specifier
        advice = f"pip install '{requirement.name}{specifier}'"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            advice = advice if needed else "for sweeps and tables: pip install 'tango-vlm[eval]'"
            yield Finding("Python", requirement.name, MISSING, "not installed", advice, needed)
            continue
        fits = specifier.contains(version, prereleases=True)
        yield judged(fits, "Python", requirement.name, version, f"wanted: {specifier}; {advice}", needed, LITTLE)


def declared() -> tuple[str, list[str]]:
    """The Python version and packages that are required, by the checkout as it is now, else by what is installed."""
    root = checkout()
    if root is not None:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    installed = metadata.metadata("tango-vlm")
    return installed["Requires-Python"], metadata.requires("tango-vlm") or []


def accelerators() -> Iterator[Finding]:
    """Whether PyTorch can be imported, which GPUs it sees, and flash attention."""
    group = "PyTorch"
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        yield Finding(group, "import torch", MISSING, str(error), "install it anew: pip install torch", needed=True)
        return
    cores = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
    yield Finding(group, "import torch", WELL, f"{torch.__version__}, {cores}", needed=True)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(group, f"GPU {index}", WELL, f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        advice = "models run on the CPU: fine for the shipped one, days for a benchmark with a 7B model"
        if DRIVER.is_file() and torch.version.cuda:  # a GPU may well be there: the most frequent reason is its driver
            built += f"; NVIDIA driver {' '.join(re.findall(r'[0-9]+[.][0-9.]+', DRIVER.read_text())[:1])}"
            need = torch.version.cuda.partition(".")[0]
            advice = (
                f"torch cannot use it: nvidia-smi must show CUDA {need} or later, else get a newer driver; {advice}"
            )
        yield Finding(group, "GPU", MISSING, built, advice)
    advice = "optional, sdpa is used without; on a GPU: pip install flash-attn"
    yield importable(group, "flash_attn", "flash-attn", advice)


def importable(group: str, module: str, name: str, advice: str) -> Finding:
    """Whether a module is there and its package's version."""
    if find_spec(module) is None:
        return Finding(group, name, MISSING, "not installed", advice)
    try:
        return Finding(group, name, WELL, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(group, name, WELL, "installed")


def benchmarks() -> Iterator[Finding]:
    """Both frameworks, the plugins, the shipped videos, and the data sets of the hub."""
    from tango.sweeps.preflight import missing_dataset

    for module, name in (
        ("lmms_eval", "lmms-eval"), ("tango_lmms_eval", "tango-lmms-eval"),
        ("vlmeval", "ms-vlmeval"), ("tango_vlmeval", "tango-vlmeval"),
    ):  # fmt: skip
        yield importable("Frameworks", module, name, "in a checkout: make setup")
    # vLLM and its plugin have an environment of their own, as make vllm makes it, or are in this one.
    root, serving = checkout(), ("Serving", "vLLM and tango-vllm")
    if find_spec("vllm") is not None and find_spec("tango_vllm") is not None:
        yield Finding(*serving, WELL, "installed")
    elif root is not None and (root / "build" / "vllm" / "installed").is_file():
        yield Finding(*serving, WELL, "in build/vllm")
    else:
        yield Finding(*serving, MISSING, "not installed", "in a checkout: make vllm (docs/serving.md)")
    data = None if root is None else root / DATA
    there = data is not None and (data / "test.json").is_file()
    found = f"{len(list((data / 'videos').glob('*.mp4')))} videos in {data}" if data and there else "no checkout"
    yield judged(there, "Data sets", "MotionQA", found, "run this in a checkout; there: make data", needed=True)
    for framework in FRAMEWORKS.values():
        for name, count in QUESTIONS.items():
            one = framework.benchmarks[name]
            if one.repository is not None:
                problem = missing_dataset(one.repository, one.pattern)
                found = f"{one.repository}, {count} questions"
                advice = (problem or "").partition("; ")[2]
                yield judged(problem is None, "Data sets", f"{name} in {framework.name}", found, advice)


def resources(models: Sequence[str]) -> Iterator[Finding]:
    """Hub cache, disk, and each model's files and memory against what is there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from tango.models.pooling_head import DEFAULT_ID
    from tango.sweeps.preflight import missing_checkpoint

    here = shutil.disk_usage(Path.cwd()).free / GIB
    yield judged(
        here >= RESULTS_GIB, "Disk", "for results", f"{here:.0f} GiB free in {Path.cwd()}",
        f"make room for {RESULTS_GIB:g} GiB", True, LITTLE,
    )  # fmt: skip
    cache = Path(HF_HUB_CACHE)
    room = free_at(cache)
    yield judged(
        os.access(standing(cache), os.W_OK), "Disk", "hub cache", f"{cache}, {room:.0f} GiB free",
        "it cannot be written; set HF_HOME to a folder that can",
    )  # fmt: skip
    root = checkout()
    chosen = models or [MODEL if root is None else str(root / MODEL), *PUBLISHED, DEFAULT_ID]
    looked_at = [(model, missing_checkpoint(model), model.endswith(MODEL) or bool(models)) for model in chosen]
    for model, problem, needed in looked_at:
        if problem is None:
            found = f"{amount(weights(model)[1])} on this machine"
            yield Finding("Models", model, WELL, found, needed=needed)
            continue
        size = PUBLISHED.get(model, 0) * PUBLISHED_BYTES / GIB
        found = f"{amount(size)} to download" if size else "not on this machine"
        if size > room:
            advice = f"make room in {cache}, or set HF_HOME to a folder on a larger disk"
            yield Finding("Models", model, LITTLE, f"{found}, {amount(room)} free", advice, needed)
        else:
            yield Finding("Models", model, MISSING, found, problem.partition("; ")[2] or problem, needed)
    where, there = memory()
    for model, problem, needed in looked_at:
        if model == DEFAULT_ID or (problem and model not in PUBLISHED):
            continue  # only its pooling head is read; or nobody knows how large it is
        count, size = weights(model)
        need = size * ROOM
        advice = f"use a smaller model, or a machine with {amount(need)} of free {where}"
        found = f"{count / 1e6:,.0f} million parameters need about {amount(need)}; {amount(there)} of {where} free"
        yield judged(need <= there, "Memory", model, found, advice, needed, LITTLE)


def amount(gib: float) -> str:
    """GiB, or MiB below one, with the unit."""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"


def standing(folder: Path) -> Path:
    """A folder, or where it is not there the one above it that is."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def free_at(folder: Path) -> float:
    """GiB free where a folder is, or would be made."""
    return shutil.disk_usage(standing(folder)).free / GIB


def memory() -> tuple[str, float]:
    """What models are loaded into here, and the GiB of it that are free."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        return "GPU memory", free / GIB
    import psutil

    return "main memory", psutil.virtual_memory().available / GIB


def weights(model: str) -> tuple[float, float]:
    """Parameters of a checkpoint and GiB of its weights: from its files, or for published ones from the list."""
    from tango.models.tensors import numbers_in

    files = weight_files(model)
    if count := float(sum(map(numbers_in, files))):
        return count, sum(file.stat().st_size for file in files) / GIB
    count = PUBLISHED.get(model, 0)
    return count, count * PUBLISHED_BYTES / GIB


def weight_files(model: str) -> list[Path]:
    """The weights of a checkpoint that is on this machine, a folder or in the hub cache."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        config = try_to_load_from_cache(model, "config.json") if model.count("/") == 1 else None
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(folder.glob("model*.safetensors"))
