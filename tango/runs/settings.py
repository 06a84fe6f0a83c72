"""Which pruning method to attach and with which settings, from WRAPPER, TANGO_CONFIG and TANGO_ARGS.

WRAPPER names a method of tango.pruners.REGISTRY; unset or "vanilla" leaves the model as it is. TANGO_CONFIG is a YAML
file and TANGO_ARGS text like "retention_ratio=0.15,sink_tokens=28;27;41" (";" between the members of a tuple, "none"
for no value); where both set a field, TANGO_ARGS wins. Everything is checked here, before any model is loaded.
"""

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tango.inference.names import called
from tango.pruners import REGISTRY
from tango.pruners.base import Pruner
from tango.runs.reading import SHORT, checked, read_yaml

VANILLA = "vanilla"
VARIABLES = ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS")
ARGS = "TANGO_ARGS: "  # before one of its fields
NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    # An explicit WRAPPER=vanilla beside an exported config is the baseline of a sweep; a missing WRAPPER is a slip.
    unused = [name for name in VARIABLES[1:] if name in sources]
    if unused and "WRAPPER" not in sources:
        raise SettingsError(
            f"{unused[0]} is set but WRAPPER is not, so no method would use it; "
            f"set WRAPPER to one of {', '.join(methods())}"
        )
    values = read_config(sources["TANGO_CONFIG"], method) if "TANGO_CONFIG" in sources else {}
    if method == VANILLA:
        return MethodSettings(sources=sources)
    values |= parse_args(sources.get("TANGO_ARGS", ""), method)
    try:
        return MethodSettings(method, REGISTRY[method](**values), sources)
    except (ValueError, TypeError) as error:
        whence = "".join(" " + called(f"{name}=", repr(sources[name])) for name in unused)
        raise SettingsError(f"WRAPPER={method!r}{whence}: {error}") from error


def make_pruner(method: str, config: str | None = None, values: Mapping[str, Any] = NOTHING) -> Pruner | None:
    """A method with settings of a YAML file and values that win over them; None for the unpruned model.

    Raises:
        SettingsError: an unknown method, field or file, or a value that cannot be.
    """
    if method not in methods():
        raise SettingsError(f"{method!r}: there is no such method; use one of {', '.join(REGISTRY)}")
    settings = read_config(config, method) if config else {}
    if method == VANILLA:
        return None
    try:
        return REGISTRY[method](**{**settings, **values})
    except (ValueError, TypeError) as error:
        raise SettingsError(str(error)) from error


def served(pruner: Pruner | None) -> Pruner:
    """A method as a server of vLLM has it: with exact_budget, since vLLM fixes a prompt's length before it encodes a
    video. The unpruned model is served with a method that keeps every token.

    Raises:
        SettingsError: what it keeps depends on more than the video.
    """
    if pruner is None:
        return REGISTRY["uniform"](retention_ratio=1.0, exact_budget=True)
    if "key" in pruner.needs:
        raise SettingsError(
            f"{pruner.name} draws by a video's place in its prompt; vLLM keeps one result of a video for all prompts"
        )
    return dataclasses.replace(pruner, exact_budget=True)


def check_served(pruner: Pruner, layers: int, saliencies: Collection[str], *, gapless: bool) -> None:
    """Refuse what vLLM cannot do with a model.

    layers: of the language model. saliencies: those of the model's family. gapless: its positions are those of the
    shorter prompt.

    Raises:
        SettingsError: says what cannot be and why.
    """
    try:
        inside = pruner.in_llm(layers) is not None
    except ValueError:  # it would prune there, if the model or the ratio were another
        inside = True
    if inside:
        raise SettingsError(
            f"{pruner.name} with these settings prunes inside the language model, where vLLM gives every layer the "
            "same tokens; choose settings, or a method, that prune before it"
        )
    if pruner.in_tower or pruner.tower_reuse is not None:
        what = pruner.name if pruner.in_tower else f"tower_reuse={pruner.tower_reuse!r}"
        raise SettingsError(
            f"{what} computes less in the vision tower, and vLLM's own encodes each frame whole; leave it out"
        )
    if pruner.saliency is not None and pruner.saliency not in saliencies:
        raise SettingsError(f"saliency={pruner.saliency!r}: this model has {', '.join(saliencies)}")
    if pruner.keep_positions and gapless:
        raise SettingsError(
            "keep_positions=True: vLLM numbers this model's tokens without gaps; set keep_positions=false"
        )
    if pruner.positions != "trained" and not gapless:
        raise SettingsError(f"positions={pruner.positions!r}: vLLM has those that the model was trained with")


def fingerprint(pruner: Pruner) -> str:
    """What tells a method and its settings from any other: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps([pruner.name, pruner.settings()], sort_keys=True).encode()).hexdigest()[:16]


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
    said = called("TANGO_CONFIG=", repr(path))
    try:
        file = Path(os.path.expanduser(path))
        found = file.is_file()
        content = read_yaml(file) if found else None
    except (OSError, RuntimeError) as error:  # no right to read it, or no such home folder
        raise SettingsError(f"{said} cannot be read: {error}") from error
    except ValueError as error:
        raise SettingsError(f"{said} {error}") from error
    if not found:
        raise SettingsError(f"{said}: no such file{_neighbours(file)}")
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise SettingsError(f"{said} holds {type(content).__name__}; it must be a mapping of fields to values")
    everywhere = {name for other in REGISTRY.values() for name in field_types(other)}
    fields = field_types(REGISTRY[method]) if method != VANILLA else {}
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in content.items():
        if name in REGISTRY:
            if not isinstance(value, dict):
                raise SettingsError(
                    f"{said}: {name!r} names a method and must hold its fields, got {SHORT.repr(value)}"
                )
            typed = {key: _value(f"{path}: {name}.{key}", item, key, name) for key, item in value.items()}
            own = typed if name == method else own
        elif name not in everywhere:
            raise SettingsError(
                f"{said}: unknown key {SHORT.repr(name)}; it may hold the methods {', '.join(sorted(REGISTRY))} and "
                f"the fields {', '.join(sorted(everywhere))}"
            )
        elif name in fields:
            shared[name] = _value(f"{path}: {name}", value, name, method)
    return shared | own


def parse_args(text: str, method: str, already: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """Parse "field=value,field=value", each value as its field's type, and add them to those that are set already."""
    values = dict(already)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise SettingsError(
                f"{called(ARGS, repr(part))} is not field=value; separate fields by ',' and members of a tuple by ';'"
            )
        if name in values:
            raise SettingsError(f"{called(ARGS, name)} = {value!r}: this sets {name!r} twice")
        values[name] = _value(called(ARGS, name), value, name, method, text=True)
    return values


def _neighbours(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"; the folder {str(folder)!r} does not exist either"
    found = sorted(p.name for p in (*folder.glob("*.yaml"), *folder.glob("*.yml")))
    return f"; {str(folder)!r} holds {', '.join(found) if found else 'no YAML files'}"


def _value(where: str, value: Any, name: Any, method: str, text: bool = False) -> Any:
    """The value of a method's field, from YAML or from text."""
    fields = field_types(REGISTRY[method])
    if name not in fields:
        raise SettingsError(f"{where}: {method!r} has no field {name!r}; its fields are {', '.join(sorted(fields))}")
    members = typing.get_args(fields[name]) or (fields[name],)
    several = any(typing.get_origin(member) is tuple for member in members)
    if text and type(None) in members and value.lower() in ("none", "null"):
        return None
    if text and several:
        value = tuple(member for member in value.split(";") if member.strip())
    elif several and isinstance(value, list):
        value = tuple(value)
    try:
        return checked(fields[name], value, where, strict=not text)
    except ValueError as error:
        hint = "; 10 % is 0.1" if str(value).endswith("%") else ""
        raise SettingsError(f"{error}{hint}") from error
