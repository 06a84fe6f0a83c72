"""Which method to serve with: from the model's configuration (--hf-overrides), else from WRAPPER and its companions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tango.pruners.base import Pruner
from tango.runs.settings import SettingsError, check_served, from_environment, make_pruner, served
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
    return served(pruner)


def check(pruner: Pruner, layers: int, saliencies: Collection[str], *, gapless: bool) -> None:
    """Refuse what a family cannot do inside vLLM; see check_served.

    Raises:
        SettingsError: says what cannot be and why.
        RuntimeError: the installed vLLM is not a tested one.
    """
    check_version()
    check_served(pruner, layers, saliencies, gapless=gapless)
