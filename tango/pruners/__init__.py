"""Every pruning method by name. Adding one: one file beside this one and one entry here."""

from __future__ import annotations

from tango.pruners.base import Pruned, Pruner
from tango.pruners.random import Random
from tango.pruners.tango import Tango
from tango.pruners.topk import TopK
from tango.pruners.uniform import Uniform

REGISTRY: dict[str, type[Pruner]] = {method.name: method for method in (Random, Uniform, TopK, Tango)}

__all__ = ["REGISTRY", "Pruned", "Pruner", "Random", "Tango", "TopK", "Uniform"]
