"""Values that others wrote, in YAML, JSON or the environment, checked against types: what is wrong in one sentence."""

import functools
import json
import math
import reprlib
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

SHORT = reprlib.Repr()  # of values in messages: YAML can hold a few bytes that stand for millions of members
SHORT.maxlevel = 2
LEVELS = 40  # of what files of ours hold within each other; they have six
# What would be right, by the first word of pydantic's name for what is wrong.
EXPECTED = {
    "float": "a number",
    "int": "an integer",
    "bool": "true or false",
    "string": "text",
    "tuple": "a tuple (in YAML [1, 2, 3], else 1;2;3)",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "too": "at least one",
}
reader: Any = functools.cache(TypeAdapter)


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


def read_json(content: bytes) -> Any:
    """What JSON says, if it is such as this project writes: finite numbers, integers of 64 bits, few levels.

    Raises:
        ValueError: it is not; says why.
    """
    try:
        value = json.loads(content, parse_constant=_number, parse_float=_number, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(LEVELS):  # by levels, since a function that calls itself would meet Python's limit first
        level = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    if level:
        raise ValueError(f"it is nested more than {LEVELS} deep")
    return value


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text} is not finite")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"the integer {SHORT.repr(text)} has more than 64 bits")
    return number


def checked(kind: Any, value: Any, name: str, *, strict: bool = True) -> Any:
    """A value as one of a type.

    Args:
        name: of the value, for the message: where it is from, and its field.
        strict: only an integer passes for a number; else text that says one does too.

    Raises:
        ValueError: it cannot be one; names the value, or the part of it that is wrong, and what would be right.
    """
    try:
        return reader(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        absent = type(None) in typing.get_args(kind) and not error.errors()[0]["loc"]
        raise ValueError(f"{sentence(error, name)}{' or none' if absent else ''}") from error


def sentence(error: ValidationError, name: str) -> str:
    """The first thing that is wrong, its place below `name`, its value, and what would be right."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    where = (name + place).lstrip(".")
    if first["type"] == "missing":
        return f"{where} is missing"
    known = EXPECTED.get(first["type"].partition("_")[0])
    right = f"expected {known}" if known else first["msg"].removeprefix("Value error, ").replace("Input", "it", 1)
    return f"{where and where + ' = '}{SHORT.repr(first['input'])}: {right}"


def missing(error: ValidationError) -> list[str]:
    """The fields that are not there, each once, without the places of members of lists."""
    lost = [one["loc"] for one in error.errors(include_url=False) if one["type"] == "missing"]
    return list(dict.fromkeys(".".join(part for part in place if isinstance(part, str)) for place in lost))
