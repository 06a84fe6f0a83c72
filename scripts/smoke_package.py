"""What smoke_package.sh runs where only the wheels are installed: all modules, data files, prune(), both plugins."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from importlib.metadata import distribution, entry_points
from importlib.resources import files
from pathlib import Path

import torch
from packaging.requirements import Requirement

DATA = {
    "tango": ("py.typed", "results/published.yaml", "visualize/page.html"),
    "tango_lmms_eval": ("py.typed", "tasks/motionqa/motionqa.yaml", "tasks/motionqa/utils.py"),
    "tango_vlmeval": ("py.typed",),
}
PACKAGES = {"tango": "tango-vlm", "tango_lmms_eval": "tango-lmms-eval", "tango_vlmeval": "tango-vlmeval"}


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"smoke test: {what}")


def main() -> None:
    for package, name in PACKAGES.items():
        module = importlib.import_module(package)
        place = Path(module.__file__ or "").resolve()
        check(place.is_relative_to(Path(sys.prefix).resolve()), f"{package} comes from {place}, not from its wheel")
        check(distribution(name).version == module.__version__, f"the wheel of {name} has another version")
        for file in DATA[package]:
            check(files(package).joinpath(file).is_file(), f"the wheel of {name} lacks {package}/{file}")
        licences = [file for file in distribution(name).files or () if file.name == "LICENSE"]
        check(any("Apache License" in file.read_text() for file in licences), f"the wheel of {name} lacks its licence")
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                version = distribution(needed.name).version
                check(version in needed.specifier, f"{name} asks for {needed} and was tried with {version}")

    from tango import Tango
    from tango.pruners import REGISTRY

    listed = [row["name"] for row in json.loads(Path("methods.json").read_text(encoding="utf-8"))]
    check(listed == list(REGISTRY), f"tango methods lists {listed}")
    torch.manual_seed(0)
    with torch.enable_grad():  # importing vlmeval turned gradients off
        features, saliency = torch.randn(4, 16, 32), torch.rand(4, 16)
        pruned = Tango(retention_ratio=0.25, exact_budget=True).prune(features, saliency, (4, 4), [0.0, 0.5, 1.0, 1.5])
    check(pruned.features.shape == (16, 32), f"prune() gave {tuple(pruned.features.shape)} of 4 x 16 x 32 at 0.25")
    check(bool((pruned.indices.diff() > 0).all()), "prune() gave indices that do not ascend")

    plugins = [point for point in entry_points(group="lmms_eval.models") if point.name == "tango"]
    check(len(plugins) == 1, f"lmms-eval would find {len(plugins)} plugins named tango")
    models = {manifest.model_id for manifest in plugins[0].load()()}
    check({"llava_onevision", "llava_vid", "qwen2_5_vl", "qwen3_vl"} <= models, f"lmms-eval would get {models}")
    print(f"smoke test: {', '.join(PACKAGES.values())} work from their wheels")


if __name__ == "__main__":
    main()
