"""Every pruning method by name. Adding one: one file beside this one and one entry here."""

from tango.pruners.base import Pruner
from tango.pruners.divprune import DivPrune
from tango.pruners.dycoke import DyCoke
from tango.pruners.earlytom import EarlyTom
from tango.pruners.evs import EVS
from tango.pruners.fastv import FastV
from tango.pruners.fastvid import FastVID
from tango.pruners.flashvid import FlashVID
from tango.pruners.holitom import HoliTom
from tango.pruners.prunevid import PruneVid
from tango.pruners.random import Random
from tango.pruners.stop import StopFastVID, StopHoliTom, StopVisionZip
from tango.pruners.tango import Tango
from tango.pruners.topk import TopK
from tango.pruners.uniform import Uniform
from tango.pruners.vcast import VCast
from tango.pruners.vidcom2 import VidCom2
from tango.pruners.video import Pruned, VideoTokens
from tango.pruners.visionzip import VisionZip

METHODS = (
    Random, Uniform, TopK, VisionZip, FastVID, HoliTom, VidCom2, FlashVID, DyCoke, DivPrune, PruneVid, FastV,
    EVS, VCast, EarlyTom, StopVisionZip, StopFastVID, StopHoliTom, Tango,
)  # fmt: skip
REGISTRY: dict[str, type[Pruner]] = {method.name: method for method in METHODS}

__all__ = [
    "EVS",
    "REGISTRY",
    "DivPrune",
    "DyCoke",
    "EarlyTom",
    "FastV",
    "FastVID",
    "FlashVID",
    "HoliTom",
    "PruneVid",
    "Pruned",
    "Pruner",
    "Random",
    "StopFastVID",
    "StopHoliTom",
    "StopVisionZip",
    "Tango",
    "TopK",
    "Uniform",
    "VCast",
    "VidCom2",
    "VideoTokens",
    "VisionZip",
]
