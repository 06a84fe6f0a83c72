"""`tango methods`: every method of the registry, read from its class: nothing about a method is written here."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tango.cli.common import InputError, Json, console, print_json, steps

if TYPE_CHECKING:
    from tango.pruners.base import Pruner

EXAMPLES = ("tango methods", "tango methods tango", "tango methods --json")
LAYERS = 28  # of the language model to ask a method about; those of the published 7B models


def methods(
    name: Annotated[str | None, typer.Argument(help="One method: its description and settings.")] = None,
    as_json: Json = False,
) -> None:
    """List the pruning methods: paper, where they act, what they need and default settings."""
    with steps(1) as step:
        step("reading the methods")
        from tango.pruners import REGISTRY

    if name is not None and name not in REGISTRY:
        raise InputError(f"{name!r}: there is no such method; there are {', '.join(REGISTRY)}")
    rows = [describe(REGISTRY[key]) for key in ([name] if name else REGISTRY)]
    if as_json:
        print_json(rows)
        return
    screen = console()
    if name is not None:
        screen.print(name, style="bold", end="  ")
        screen.print(f"{rows[0]['acts']}; needs {', '.join(rows[0]['needs'])}\n", highlight=False)
        screen.print(rows[0]["description"], highlight=False)
        screen.print("\nDefaults: " + settings_text(rows[0]["settings"]), highlight=False)
        return
    shown = Table(caption="tango methods NAME describes one. Settings of all: " + settings_text(shared()))
    for column in ("name", "paper", "acts", "needs", "its own settings and their defaults"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        own = {key: value for key, value in row["settings"].items() if key not in shared()}
        shown.add_row(row["name"], row["paper"] or "", row["acts"], ", ".join(row["needs"]), settings_text(own))
    screen.print(shown)


def shared() -> dict[str, Any]:
    """The settings that every method has."""
    from tango.pruners.base import Pruner

    return {field.name: field.default for field in dataclasses.fields(Pruner)}


def describe(method: type[Pruner]) -> dict[str, Any]:
    """What a class says of itself."""
    text = inspect.cleandoc(method.__doc__ or "")
    paper = re.search(r"arXiv (\d{4}\.\d{5})", text)
    default = method()
    return {
        "name": method.name,
        "paper": paper[1] if paper else None,
        "acts": where(method, default),
        "needs": ["features", *sorted(default.needs)],
        "settings": default.settings(),
        "description": text,
    }


def where(method: type[Pruner], default: Pruner) -> str:
    """Where it prunes: asked of the method with its defaults, and of whether it could do otherwise."""
    from tango.pruners.base import Pruner

    if default.in_llm(LAYERS) is not None:
        return "inside the language model"
    if method.in_llm is Pruner.in_llm:
        return "before the language model"
    layer = next(field.name for field in dataclasses.fields(method) if field.name.endswith("_layer"))
    return f"before the language model; with {layer} inside it too"


def settings_text(settings: dict[str, Any]) -> str:
    """Settings on one line, as name=value."""
    return ", ".join(f"{key}={'none' if value is None else value}" for key, value in settings.items()) or "none"
