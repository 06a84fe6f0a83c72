"""Every pruning method by name. Adding one: one file beside this one and one entry here."""

from __future__ import annotations

from tango.pruners.base import Pruned, Pruner
from tango.pruners.divprune import DivPrune
from tango.pruners.dycoke import DyCoke
from tango.pruners.prunevid import PruneVid
from tango.pruners.random import Random
from tango.pruners.tango import Tango
from tango.pruners.topk import TopK
from tango.pruners.uniform import Uniform
from tango.pruners.vidcom2 import VidCom2

REGISTRY: dict[str, type[Pruner]] = {
    method.name: method for method in (Random, Uniform, TopK, VidCom2, DyCoke, DivPrune, PruneVid, Tango)
}

__all__ = [
    "REGISTRY",
    "DivPrune",
    "DyCoke",
    "PruneVid",
    "Pruned",
    "Pruner",
    "Random",
    "Tango",
    "TopK",
    "Uniform",
    "VidCom2",
]
