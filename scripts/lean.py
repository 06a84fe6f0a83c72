"""Runs a command with no more than what some extras of pyproject.toml bring, in an environment that has more.

    python scripts/lean.py "" -c "from tango import Tango"      # what `pip install tango-vlm` needs, and no more
    python scripts/lean.py cli -m tango.cli ask

Other packages that are installed cannot be imported, nor found by their metadata.
"""

from __future__ import annotations

import runpy
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OURS = "tango-vlm"


def brought(extras: Iterable[str]) -> set[str]:
    """Names of the packages that the extras bring, and what those need in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, rest = set(), [Requirement(f"{OURS}[{','.join(extras)}]")]
    seen: set[tuple[str, str]] = set()
    while rest:
        needed = rest.pop()
        name = canonicalize_name(needed.name)
        for extra in ("", *needed.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name == OURS:
                lines = project["dependencies"] if extra == "" else project["optional-dependencies"][extra]
                rest += map(Requirement, lines)
                continue
            try:
                lines = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # of another system than this, or not needed here
                continue
            found.add(name)
            rest += [
                one
                for one in map(Requirement, lines)
                if (one.marker is None and extra == "") or (one.marker and one.marker.evaluate({"extra": extra}))
            ]
    return found


class Only(metadata.DistributionFinder):
    """Stands in for all finders, and finds no module and no metadata of a package that was not brought."""

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages | {OURS}
        self.finders = list(sys.meta_path)
        self.refused = {
            module
            for module, owners in metadata.packages_distributions().items()
            if not {canonicalize_name(owner) for owner in owners} & packages and module not in ("tango", "__pycache__")
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.refused:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders if hasattr(finder, "find_spec"))
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, context: Any = metadata.DistributionFinder.Context()) -> Any:  # noqa: B008
        finders = (finder for finder in self.finders if hasattr(finder, "find_distributions"))
        every = (one for finder in finders for one in finder.find_distributions(context))
        return (one for one in every if canonicalize_name(one.name) in self.packages)


def main() -> None:
    extras, how, *words = sys.argv[1:]
    finder = Only(brought([extra for extra in extras.split(",") if extra]))
    for module in [module for module in sys.modules if module.partition(".")[0] in finder.refused]:
        del sys.modules[module]
    sys.meta_path[:] = [finder]
    if how == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(words[0], {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        raise SystemExit('usage: lean.py EXTRAS (-c CODE | -m MODULE) ..; EXTRAS as cli,eval or ""')


if __name__ == "__main__":
    main()
