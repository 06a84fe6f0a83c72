"""Which method to serve with: from the model's configuration (--hf-overrides), else from WRAPPER and its companions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import Any

from tango.pruners.base import Pruner
from tango.runs.settings import SettingsError, from_environment, make_pruner
from tango_vllm import check_version


def from_environment_or_config(config: Any) -> Pruner:
    """The pruner of a served model, always with exact_budget: vLLM fixes a prompt's length before it encodes a video.

    config: the model's configuration; its `tango`, if any, is {"method": .., and the method's settings}.

    Raises:
        SettingsError: no method, one that does not exist, settings that cannot be, or what vLLM cannot do.
    """
    chosen = getattr(config, "tango", None)
    if chosen is None:
        pruner = from_environment().pruner
    elif isinstance(chosen, dict) and isinstance(chosen.get("method"), str):
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
        pruner = make_pruner(values.pop("method"), values=values)
    else:
        raise SettingsError(f'tango={chosen!r} in --hf-overrides: expected {{"method": .., and its settings}}')
    if pruner is None:
        raise SettingsError(
            'this model prunes, and no method is chosen: set WRAPPER, or "tango": {"method": ..} in --hf-overrides'
        )
    if "key" in pruner.needs:
        raise SettingsError(
            f"{pruner.name} draws by a video's place in its prompt; vLLM keeps one result of a video for all prompts"
        )
    return dataclasses.replace(pruner, exact_budget=True)


def check(pruner: Pruner, layers: int, saliencies: Collection[str], *, gapless: bool) -> None:
    """Refuse what a family cannot do inside vLLM.

    layers: of the language model. gapless: the family's positions are those of the shorter prompt.

    Raises:
        SettingsError: says what cannot be and why.
        RuntimeError: the installed vLLM is not a tested one.
    """
    check_version()
    try:
        inside = pruner.in_llm(layers) is not None
    except ValueError:  # it would prune there, if the model or the ratio were another
        inside = True
    if inside:
        raise SettingsError(
            f"{pruner.name} with these settings prunes inside the language model, where vLLM gives every layer the "
            "same tokens; choose settings, or a method, that prune before it"
        )
    if pruner.in_tower:
        raise SettingsError(
            f"{pruner.name} merges frames inside the vision tower, and vLLM's own keeps all; choose another method"
        )
    if pruner.tower_reuse is not None:
        raise SettingsError(
            f"tower_reuse={pruner.tower_reuse!r}: vLLM's own vision tower encodes each frame whole; leave it out"
        )
    if pruner.saliency is not None and pruner.saliency not in saliencies:
        raise SettingsError(f"saliency={pruner.saliency!r}: this model has {', '.join(saliencies)}")
    if pruner.keep_positions and gapless:
        raise SettingsError(
            "keep_positions=True: vLLM numbers this model's tokens without gaps; set keep_positions=false"
        )
    if pruner.positions != "trained" and not gapless:
        raise SettingsError(f"positions={pruner.positions!r}: vLLM has those that the model was trained with")


def salt(pruner: Pruner) -> str:
    """What tells results of one method and its settings from those of any other, in the keys of vLLM's caches."""
    return hashlib.sha256(json.dumps([pruner.name, pruner.settings()], sort_keys=True).encode()).hexdigest()[:16]
