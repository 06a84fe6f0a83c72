"""Which small changes scripts/mutate.py may make to a file of Python, by its syntax tree.

Left alone is what no test should hold: annotations, imports, docstrings and other texts, f-strings, what is raised,
printed or warned with, and `if TYPE_CHECKING`. A change that leaves the bytecode as it was is no change.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
PAIRS = (
    "min max, amin amax, argmin argmax, any all, floor ceil, minimum maximum, cummin cummax, zeros ones, "
    "zeros_like ones_like, sum mean, startswith endswith, float32 float16, int64 int32"
)
NAMES = {old: new for pair in PAIRS.split(",") for old, new in (pair.split(), pair.split()[::-1])}
LEFT_OUT = {  # calls that give way to what they are called on, or with
    "clamp", "clamp_", "float", "double", "long", "to", "clone", "abs", "round", "sorted", "reversed", "strip", "lower",
    "masked_fill", "masked_fill_", "flatten", "sqrt", "int", "set", "resolve", "deepcopy",
}  # fmt: skip
# Swapped, their arguments say the same.
EITHER_WAY = {"max", "min", "maximum", "minimum", "equal", "transpose", "hypot", "isclose"}
MODULES = ("math", "torch", "copy")
WORDING = {"warn", "warning", "info", "print", "echo"}
Change = tuple[str, Any, ast.AST]


def mutants_of(path: Path, root: Path) -> list[dict[str, Any]]:
    """Every change of a file: whole lines before and after it, and which lines a test must run to see it."""
    source = path.read_text(encoding="utf-8")
    lines, found, compiled = source.encode().split(b"\n"), [], compile(source, "", "exec")
    for (kind, old, new), span in walk(ast.parse(source), (1, source.count("\n"))):
        text = ast.unparse(ast.fix_missing_locations(new)).encode()
        if isinstance(new, ast.expr) and not isinstance(new, ast.Constant | ast.Name | ast.Slice | ast.Call):
            text = b"(" + text + b")"
        first, last = old.lineno - 1, old.end_lineno - 1
        before = lines[first : last + 1]
        after = before[0][: old.col_offset] + text + before[-1][old.end_col_offset :]
        changed = b"\n".join([*lines[:first], after, *lines[last + 1 :]]).decode()
        try:
            if same(compiled, compile(changed, "", "exec")):
                continue
        except SyntaxError:  # a starred argument that would come first, say
            continue
        place = {"path": str(path.relative_to(root)), "line": first + 1, "span": span, "kind": kind}
        found.append(place | {"before": b"\n".join(before).decode(), "after": after.decode()})
    return found


def walk(node: ast.AST, span: tuple[int, int]) -> Iterator[tuple[Change, tuple[int, int]]]:
    """All changes below a node, each with its statement's lines: of a function's head, those of its body."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__"):
        return
    outside = span[0] == 1  # of a function: whatever runs a line of the file
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        span = (node.body[0].lineno, node.end_lineno or 0)
    elif isinstance(node, ast.stmt) and not outside:
        body = getattr(node, "body", None)
        span = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or 0)
    yield from ((change, span) for change in changes(node))
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and called(node) in WORDING):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, span)


def changes(node: Any) -> Iterator[Change]:
    """What may be changed in a node itself: the kind of change, what goes, and what comes in its place."""

    def with_(kind: str, **fields: Any) -> Change:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return kind, node, new

    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OPERATORS:
            yield with_("comparison", ops=[OPERATORS[type(operator)]()])
        case ast.BoolOp():
            yield with_("and, or", op=OPERATORS[type(node.op)]())
        case ast.BinOp(left=left, right=right) if type(node.op) in OPERATORS:
            text = any(isinstance(one, ast.JoinedStr | ast.List) or is_text(one) for one in (left, right))
            if not text:
                yield with_("operator", op=OPERATORS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield "sign or not", node, node.operand
        case ast.Constant(value=bool()):
            yield with_("true, false", value=not node.value)
        case ast.Constant(value=int()):
            yield with_("constant", value=node.value + 1)
            yield with_("constant", value=node.value - 1)
        case ast.Constant(value=float()):
            yield with_("constant", value=node.value * 2)
        case ast.Slice():
            for end in ("lower", "upper"):
                if getattr(node, end) is not None:
                    yield with_("slice", **{end: None})
                    yield with_("slice", **{end: ast.BinOp(getattr(node, end), ast.Add(), ast.Constant(1))})
        case ast.Return(value=ast.expr()):
            yield with_("returned value", value=ast.Constant(None))
        case ast.If() | ast.IfExp() if isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
            yield "sign or not", node.test, ast.UnaryOp(ast.Not(), node.test)
        case ast.comprehension(ifs=[condition, *_]):
            yield "condition left out", condition, ast.Constant(True)
        case ast.Attribute(attr=name) if name in NAMES:
            yield with_("name", attr=NAMES[name])
        case ast.Name(id="min" | "max" | "any" | "all", ctx=ast.Load()):
            yield with_("name", id=NAMES[node.id])
        case ast.keyword(arg="min" | "max"):
            yield with_("name", arg=NAMES[node.arg])
        case ast.Call(args=args) if called(node) not in WORDING:
            if (
                len(args) > 1
                and called(node) not in EITHER_WAY
                and not any(isinstance(one, ast.Starred) for one in args[:2])
            ):
                yield with_("arguments", args=[args[1], args[0], *args[2:]])
            if called(node) == "range":
                at = 0 if len(args) == 1 else 1
                end = ast.BinOp(args[at], ast.Sub(), ast.Constant(1))
                yield with_("range", args=[*args[:at], end, *args[at + 1 :]])
            if called(node) in LEFT_OUT:
                method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in MODULES
                if method or args:
                    yield "call left out", node, node.func.value if method else args[0]
    match node:
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Expr(value=ast.Call()):
            yield "statement left out", node, ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement left out", node, ast.Pass()


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def called(node: ast.Call) -> str:
    """The last part of what is called."""
    return getattr(node.func, "attr", None) or getattr(node.func, "id", "")


def same(one: Any, other: Any) -> bool:
    """Whether two code objects, or constants of them, do the same."""
    if not isinstance(one, CodeType) or not isinstance(other, CodeType):
        return type(one) is type(other) and repr(one) == repr(other)
    names = ("co_code", "co_names", "co_varnames", "co_freevars")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and len(one.co_consts) == len(other.co_consts)
        and all(map(same, one.co_consts, other.co_consts))
    )
