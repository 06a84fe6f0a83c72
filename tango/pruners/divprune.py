"""DivPrune: keep the tokens that are farthest from one another.

Alvar et al., arXiv 2503.02175, from the paper's formula (a max-min diversity problem, solved greedily). Features only;
nothing is merged.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.ops.density import distances
from tango.pruners.base import Pruner, full_precision
from tango.pruners.budget import evenly
from tango.pruners.settings import OneOf
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

BLOCK_ELEMENTS = 1 << 22  # of cosines at once, for the first pick
FEW = 4  # nearest by products, of which the truly nearest is taken


@dataclass
class DivPrune(Pruner):
    """DivPrune, arXiv 2503.02175: A = round(r * n) of n tokens (halves to even, at least 1).

    Distance is 1 - cosine, in fp32; a zero token is at distance 1 from all. The first pick is the token whose nearest
    other token is farthest, each next one the token farthest from its nearest pick, never a token twice. Ties, and
    copies, go to the lower index. Published for images (576 tokens, r = 0.098); what a video is to it, we chose.

    Args:
        retention_ratio: see Pruner.
        saliency, saliency_weights: not used.
        exact_budget: see Pruner; it changes scope "frame" only: frame f of F then has floor((f + 1) B / F) -
            floor(f B / F) of the B tokens.
        scope: "video" picks from all tokens at once, "frame" from each frame by itself.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "divprune"

    scope: Annotated[str, OneOf("video", "frame")] = "video"

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        frames, tokens, _ = features.shape
        if self.scope == "video":
            budgets = torch.tensor([self.budget(frames, tokens)])
            sets = features.flatten(0, 1)[None]
        else:
            budgets = torch.full((frames,), self.budget(1, tokens))
            if self.exact_budget:
                budgets = evenly(self.budget(frames, tokens), frames)
            sets = features
        with full_precision(features.device):
            picks = most_diverse(sets, int(budgets.max()))
        starts = torch.arange(len(sets), device=picks.device)[:, None] * sets.shape[1]
        # The first picks of a longer sequence are those of a shorter one.
        given = torch.arange(picks.shape[1]) < budgets[:, None]
        return keep(features, (picks + starts)[given.to(picks.device)].sort().values)


def most_diverse(sets: Tensor, count: int) -> Tensor:
    """Greedy max-min picks from each of G sets, never a token twice.

    Args:
        sets: (G, n, D) any floating dtype.
        count: picks of each set, 1 to n.

    Returns:
        (G, count) int64 places in each set, in the order of picking.
    """
    units = torch.nn.functional.normalize(sets.float(), dim=-1)
    picks = torch.empty(len(units), count, dtype=torch.int64, device=units.device)
    nearest = _nearest_other(units)
    # Equal rows of a product can differ by rounding; copies take the first one's, so that the lower index wins.
    first = _first_copies(units, nearest == 0)
    for turn in range(count):
        pick = nearest.argmax(1, keepdim=True)
        picks[:, turn] = pick[:, 0]
        away = (1 - torch.bmm(units, _gather(units, pick).mT)[..., 0]).gather(1, first)
        nearest = away if turn == 0 else torch.minimum(nearest, away)
        nearest.scatter_(1, picks[:, : turn + 1], -torch.inf)
    return picks


def _first_copies(units: Tensor, copied: Tensor) -> Tensor:
    """The first row equal to each row (G, n) of the sets (G, n, D); only rows marked (G, n) can have another."""
    groups, size, _ = units.shape
    first = torch.arange(size, device=units.device).repeat(groups, 1)
    of, place = copied.nonzero(as_tuple=True)
    if len(of):
        rows = torch.cat([of[:, None].to(units.dtype), units[of, place]], dim=1)
        kind = torch.unique(rows, dim=0, return_inverse=True)[1]
        least = torch.full_like(kind, size).scatter_reduce(0, kind, place, "amin")
        first[of, place] = least[kind]
    return first


def _nearest_other(units: Tensor) -> Tensor:
    """Distance (G, n) of each unit vector (G, n, D) to the nearest other of its set; 0 for one alone.

    A product finds a few that may be the nearest; see _away() for the distances that decide.
    """
    groups, size, dim = units.shape
    nearest = units.new_zeros(groups, size)
    places = torch.arange(size, device=units.device)
    few = min(FEW, size - 1)
    if not few:
        return nearest
    for start in range(0, size, step := max(1, BLOCK_ELEMENTS // (groups * size))):
        rows = units[:, start : start + step]
        cosines = torch.bmm(rows, units.mT)
        cosines[:, places[: rows.shape[1]], places[start : start + step]] = -torch.inf
        near = cosines.topk(few, dim=2, sorted=False).indices
        others = _gather(units, near.flatten(1)).view(-1, few, dim)
        nearest[:, start : start + step] = _away(rows.reshape(-1, dim), others).amin(1).view(groups, -1)
    return nearest


def _away(points: Tensor, others: Tensor) -> Tensor:
    """1 - cosine (p, q) of unit or zero vectors (p, D) and (p, q, D).

    From differences, which tie where they should: for copies, and for two tokens that are each other's nearest.
    """
    away = distances(points, others).square() / 2
    return away.masked_fill((points == 0).all(-1)[:, None] | (others == 0).all(-1), 1.0)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """values (G, n, D), index (G, k) -> (G, k, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
