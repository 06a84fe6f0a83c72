"""Which pruning method to attach and with which settings, from WRAPPER, TANGO_CONFIG and TANGO_ARGS.

WRAPPER names a method of tango.pruners.REGISTRY; unset or "vanilla" leaves the model as it is. TANGO_CONFIG is a YAML
file and TANGO_ARGS text like "retention_ratio=0.15,sink_tokens=28;27;41" (";" between the members of a tuple, "none"
for no value); where both set a field, TANGO_ARGS wins. Everything is checked here, before any model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tango.pruners import REGISTRY
from tango.pruners.base import Pruner

VANILLA = "vanilla"
VARIABLES = ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS")
SHORT = reprlib.Repr()  # of values in messages: YAML can hold a few bytes that stand for millions of members
SHORT.maxlevel = 2


class SettingsError(ValueError):
    """A method, field, value or file that cannot be; the message says what can."""


@dataclass(frozen=True)
class MethodSettings:
    """The method to evaluate: its name, the pruner to attach (None for the unpruned model), and where it is from."""

    method: str = VANILLA
    pruner: Pruner | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Plain JSON for results: method, all its settings, and the variables they came from."""
        settings = {} if self.pruner is None else self.pruner.settings()
        return {"method": self.method, "settings": settings, "sources": dict(self.sources)}


def from_environment(environ: Mapping[str, str] = os.environ) -> MethodSettings:
    """Read WRAPPER, TANGO_CONFIG and TANGO_ARGS.

    Raises:
        SettingsError: an unknown method, field or file, a value of the wrong type or out of range, or settings without
            a method.
    """
    sources = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    method = sources.get("WRAPPER", VANILLA)
    if method != VANILLA and method not in REGISTRY:
        raise SettingsError(f"WRAPPER={method!r}: there is no such method; use one of {', '.join(methods())}")
    fields = field_types(REGISTRY[method]) if method != VANILLA else {}
    values = read_config(sources["TANGO_CONFIG"], method) if "TANGO_CONFIG" in sources else {}
    if method == VANILLA:
        # An explicit WRAPPER=vanilla beside an exported config is the baseline of a sweep; a missing WRAPPER is a slip.
        given = [name for name in VARIABLES[1:] if name in sources]
        if given and "WRAPPER" not in sources:
            raise SettingsError(
                f"{given[0]} is set but WRAPPER is not, so no method would use it; "
                f"set WRAPPER to one of {', '.join(methods())}"
            )
        return MethodSettings(sources=sources)
    values |= parse_args(sources.get("TANGO_ARGS", ""), method, fields)
    try:
        return MethodSettings(method, REGISTRY[method](**values), sources)
    except (ValueError, TypeError) as error:
        whence = "".join(f" {name}={sources[name]!r}" for name in VARIABLES[1:] if name in sources)
        raise SettingsError(f"WRAPPER={method!r}{whence}: {error}") from error


def methods() -> list[str]:
    """Every value WRAPPER may take."""
    return [VANILLA, *sorted(REGISTRY)]


def field_types(method: type[Pruner]) -> dict[str, Any]:
    """The settings of a method and their types."""
    hints = typing.get_type_hints(method)
    return {f.name: hints[f.name] for f in dataclasses.fields(method) if f.init}


def read_config(path: str, method: str) -> dict[str, Any]:
    """Settings of one method from a YAML file.

    Top-level keys are fields, for every method that has them, or names of methods that hold fields for that method
    only; the latter win. For WRAPPER=vanilla the file is only checked.
    """
    try:
        file = Path(path).expanduser()
        found = file.is_file()
        content = read_yaml(file) if found else None
    except (OSError, RuntimeError) as error:  # no right to read it, or no such home folder
        raise SettingsError(f"TANGO_CONFIG={path!r} cannot be read: {error}") from error
    except ValueError as error:
        raise SettingsError(f"TANGO_CONFIG={path!r} {error}") from error
    if not found:
        raise SettingsError(f"TANGO_CONFIG={path!r}: no such file{_neighbours(file)}")
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise SettingsError(
            f"TANGO_CONFIG={path!r} holds {type(content).__name__}; it must be a mapping of fields to values"
        )
    everywhere = {name for other in REGISTRY.values() for name in field_types(other)}
    fields = field_types(REGISTRY[method]) if method != VANILLA else {}
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in content.items():
        if name in REGISTRY:
            if not isinstance(value, dict):
                raise SettingsError(
                    f"TANGO_CONFIG={path!r}: {name!r} names a method and must hold its fields, got {SHORT.repr(value)}"
                )
            types_of = field_types(REGISTRY[name])
            typed = {
                key: _typed(f"{path}: {name}.{key}", item, _field(path, key, name, types_of))
                for key, item in value.items()
            }
            own = typed if name == method else own
        elif name not in everywhere:
            raise SettingsError(
                f"TANGO_CONFIG={path!r}: unknown key {SHORT.repr(name)}; it may hold the methods "
                f"{', '.join(sorted(REGISTRY))} "
                f"and the fields {', '.join(sorted(everywhere))}"
            )
        elif name in fields:
            shared[name] = _typed(f"{path}: {name}", value, fields[name])
    return shared | own


def read_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: it is not YAML; says why, not which file.
        OSError: it cannot be read.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date or number that cannot be
        raise ValueError(f"is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("is not YAML that can be read: it is nested too deeply") from error


def parse_args(text: str, method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Parse "field=value,field=value"; each value is read as its field's type."""
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise SettingsError(
                f"TANGO_ARGS: {part!r} is not field=value; separate fields by ',' and members of a tuple by ';'"
            )
        if name in values:
            raise SettingsError(f"TANGO_ARGS sets {name!r} twice")
        values[name] = _parsed(f"TANGO_ARGS: {name}", value, _field("TANGO_ARGS", name, method, fields))
    return values


def _neighbours(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"; the folder {str(folder)!r} does not exist either"
    found = sorted(p.name for p in (*folder.glob("*.yaml"), *folder.glob("*.yml")))
    return f"; {str(folder)!r} holds {', '.join(found) if found else 'no YAML files'}"


def _field(where: str, name: str, method: str, fields: Mapping[str, Any]) -> Any:
    if name not in fields:
        raise SettingsError(f"{where}: {method!r} has no field {name!r}; its fields are {', '.join(sorted(fields))}")
    return fields[name]


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"a tuple of {typing.get_args(hint)[0].__name__} (written 1;2;3)"
    return {type(None): "none", float: "a number", int: "an integer", bool: "true or false", str: "text"}.get(
        hint, str(hint)
    )


def _parsed(where: str, text: str, hint: Any) -> Any:
    """Text as a value of a type; unions take the first member that can read it."""
    for option in sorted(_options(hint), key=lambda o: o is str):
        try:
            if option is type(None):
                if text.lower() in ("none", "null"):
                    return None
            elif option is bool:
                if text.lower() in ("true", "false"):
                    return text.lower() == "true"
            elif typing.get_origin(option) is tuple:
                return tuple(typing.get_args(option)[0](member) for member in text.split(";") if member.strip())
            else:
                return option(text)
        except ValueError:
            continue
    raise SettingsError(f"{where} = {text!r}: expected {' or '.join(_name(option) for option in _options(hint))}")


def _typed(where: str, value: Any, hint: Any) -> Any:
    """A value from YAML, checked against a type: integers pass for numbers and lists for tuples."""
    for option in _options(hint):
        if typing.get_origin(option) is tuple:
            member = typing.get_args(option)[0]
            if isinstance(value, list) and all(type(v) is member for v in value):
                return tuple(value)
        elif type(value) is option:
            return value
        elif option is float and type(value) is int and abs(value) < 2**1023:
            return float(value)
    raise SettingsError(
        f"{where} = {SHORT.repr(value)}: expected {' or '.join(_name(option) for option in _options(hint))}"
    )
