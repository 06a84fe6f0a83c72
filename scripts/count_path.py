"""Counts what somebody has to read who wants to change Tango: python scripts/count_path.py

Prints the files of tango/ that one generate() of LLaVA-OneVision with Tango enters (tango-tiny, a shipped video,
seconds on a CPU), each with all its lines, and the circles of imports in tango/. tests/test_architecture.py sees to it
that neither grows.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL, VIDEO, FRAMES = ROOT / "checkpoints" / "tango-tiny", ROOT / "data" / "motionqa" / "videos" / "0.mp4", 8
KINDS = ("top", "function", "typing")  # where an import stands: at the top, in a function, under TYPE_CHECKING


@dataclass(frozen=True)
class Import:
    """One module imports another, both by their full names; kind: one of KINDS."""

    importer: str
    imported: str
    kind: str


def imports_of(package: Path) -> list[Import]:
    """All imports of a package folder's modules: of its own modules by their names, of others as they are written.

    `from package import name` counts as an import of package.name where that is a module, else of package.
    """
    modules = {module_name(file, package): file for file in package.rglob("*.py")}
    found: dict[Import, None] = {}  # in order, each once
    for name, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        for node, kind in _import_nodes(tree, "top"):
            for imported in _imported(node, name, file.name == "__init__.py", modules):
                found[Import(name, imported, kind)] = None
    return list(found)


def module_name(file: Path, package: Path) -> str:
    """`tango.pruners.tango` for the file tango/pruners/tango.py, `tango.pruners` for tango/pruners/__init__.py."""
    parts = [*file.relative_to(package.parent).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _import_nodes(node: ast.AST, kind: str) -> Iterable[tuple[ast.Import | ast.ImportFrom, str]]:
    """Import statements below a node, each with its kind."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, kind
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _import_nodes(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _import_nodes(ast.Module([statement], []), kind)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _import_nodes(child, "function" if inside and kind == "top" else kind)


def _imported(node: ast.Import | ast.ImportFrom, name: str, is_package: bool, modules: Iterable[str]) -> Iterable[str]:
    """Full names of the modules that a statement in the module `name` imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:  # relative: one dot is the package that the module is in, or is
        parts = name.split(".")
        base = ".".join([*parts[: len(parts) - node.level + is_package], *filter(None, [base])])
    for alias in node.names:
        yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base


def circles(imports: Iterable[Import], kinds: Iterable[str] = KINDS) -> list[list[str]]:
    """Groups of modules that import one another around a circle: the strongly connected components of more than one."""
    reached: dict[str, set[str]] = {}
    arrows: dict[str, set[str]] = {}
    for one in imports:
        if one.kind in kinds:
            arrows.setdefault(one.importer, set()).add(one.imported)
    for start in arrows:
        todo, reached[start] = [start], set()
        while todo:
            new = arrows.get(todo.pop(), set()) - reached[start]
            reached[start] |= new
            todo.extend(new)
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached.get(other, ())))
        for module in arrows
        if module in reached[module]
    }
    return sorted(list(group) for group in groups)


def lines_of(files: Iterable[Path]) -> int:
    """Lines of files, blank ones and comments too."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def entered(call: Callable[[], Any], folder: Path) -> list[Path]:
    """The files below a folder of which a call runs a function, in the order they are entered.

    Bodies of modules that the call imports do not count; code that a dataclass generates does, for its class's file.
    """
    seen: dict[str, None] = {}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            file = frame.f_code.co_filename
            seen[frame.f_globals.get("__file__") or file if file == "<string>" else file] = None

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return [path for path in map(Path, seen) if path.is_relative_to(folder)]


@contextmanager
def attached() -> Iterator[Callable[[], Any]]:
    """A generate() of tango-tiny on a shipped video, ready to be called as long as the context is open."""
    import av
    import torch
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    from tango import Tango

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(MODEL).eval()
    processor = AutoProcessor.from_pretrained(MODEL)
    with av.open(str(VIDEO)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = decoded[:: len(decoded) // FRAMES][:FRAMES]
    content = [{"type": "video"}, {"type": "text", "text": "Which object appears first?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, videos=[frames], return_tensors="pt")
    inputs["video_timestamps"] = [torch.arange(FRAMES) / 2]
    with Tango(retention_ratio=0.1)(model) as session:
        yield lambda: model.generate(**inputs, max_new_tokens=2)
        if not session.videos or session.videos[0].tokens_after >= session.videos[0].tokens_before:
            raise RuntimeError("generate() pruned nothing: its path is not the one to count")


def main() -> int:
    import tango

    package = Path(tango.__file__).parent
    with attached() as generate:
        files = entered(generate, package)
    print("entered by one generate() of LLaVA-OneVision with Tango:")
    for file in files:
        print(f"{lines_of([file]):6} {file.relative_to(package.parent)}")
    print(f"{lines_of(files):6} lines in {len(files)} files\n")
    imports = imports_of(package)
    for kinds in (KINDS[:1], KINDS[:2], KINDS):
        found = circles(imports, kinds)
        print(f"circles of imports ({', '.join(kinds)}): {len(found) or 'none'}")
        for modules in found:
            print("       " + " ".join(modules))
    print(f"{lines_of(package.rglob('*.py')):6} lines of Python in {package.name}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
