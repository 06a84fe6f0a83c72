"""What every method may say of the vision tower before it: that only patches which change are computed there."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tango.pruners.settings import Count, Number, OneOf, PositiveShare, Share


@dataclass(kw_only=True)
class TowerReuse:
    """Settings of reuse between frames in the vision tower; tango/models/reuse.py does it, and docs/method.md shows it.

    Args:
        tower_reuse: None computes every patch of every frame. "pixels": a patch whose pixels hardly changed takes over
            the states of the frame in which they were last computed. "stc": STC-Cacher (arXiv 2512.00891), where each
            layer computes those patches anew whose keys have changed most; in SigLIP towers alone.
        tower_reuse_layers: share of the tower's layers, from the first, in which patches are reused, rounded down;
            with "pixels" never the last one. None: a third with "pixels", all with "stc".
        tower_reuse_threshold: with "pixels", the root mean square change of a patch's pixels, as the processor
            normalises them, up to which it is reused. SigLIP's lie in -1 .. 1, so that 0.01 is 1.3 levels of 255.
        tower_reuse_interval: each so manieth frame (with "stc": chunk of one frame) is computed whole, beginning with
            the first. With "pixels" so is a frame of which more than half has changed. None: 16 with "pixels", 2 with
            "stc", as published.
        tower_reuse_ratio: with "stc", share of a frame's patches that are computed.
    """

    in_tower: ClassVar[bool] = False  # whether the method merges frames inside the vision tower

    tower_reuse: Annotated[str, OneOf("pixels", "stc")] | None = None
    tower_reuse_layers: Share | None = None
    tower_reuse_threshold: Annotated[float, Number(least=0)] = 0.05
    tower_reuse_interval: Count | None = None
    tower_reuse_ratio: PositiveShare = 0.25
