"""Pruning inside the language model, before its layer K: the settings, the shares and the steps, on plain tensors.

Layers 0 .. K-1 see every token of a prompt. Layer K-1's attention of the last prompt token then ranks the tokens of
each video, and layers K and later only see the best of them (FastV, arXiv 2403.06764). A method may let what it drops
live on in what it keeps (Tango, arXiv 2604.09547; HoliTom, arXiv 2505.21334). Here is what to compute; which tensors
of a model it is computed on, in which precision, and what becomes of caches, masks and positions, is
`tango/models/in_llm.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tango.pruners.similarity import most_similar

MERGINGS = ("drop", "mean", "sequential")
ROUNDINGS = ("half_even", "up")


@dataclass(frozen=True)
class LayerPruning:
    """What a method does before one layer of the language model.

    Args:
        layer: K, counted from 0: the first layer that sees fewer tokens.
        retention: share p of each video's tokens that stays, in (0, 1].
        merging: "drop" forgets what does not stay (FastV, FlashVID); "mean" and "sequential" merge each dropped token
            into the most similar kept one (Tango and HoliTom; see `merge`).
        anchor_share: share of itself that a kept token has in the result of "mean".
        rounding: of n * p, "half_even" or "up"; at least one token of a video stays.
        newlines: whether newline embeddings among a video's tokens are ranked and dropped like tokens, or all stay.
        causal: False lets a prompt's tokens see later ones in layer K-1 at prefill, as in the published code of Tango
            and HoliTom, where that layer gets no mask. The last token's row, and so what stays, is the same.

    Raises:
        ValueError: a setting is out of its range.
    """

    layer: int
    retention: float
    merging: str = "drop"
    anchor_share: float = 0.6
    rounding: str = "half_even"
    newlines: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(f"layer = {self.layer!r}: expected an integer of at least 1")
        if not 0 < self.retention <= 1:
            raise ValueError(f"retention = {self.retention!r}: expected a number in (0, 1]")
        if not 0 <= self.anchor_share <= 1:
            raise ValueError(f"anchor_share = {self.anchor_share!r}: expected a number in [0, 1]")
        for name, choices in (("merging", MERGINGS), ("rounding", ROUNDINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(choices)}")

    def count(self, tokens: int) -> int:
        """How many of a video's tokens stay."""
        share = tokens * self.retention
        return min(tokens, max(1, round(share) if self.rounding == "half_even" else math.ceil(share)))

    def keep(self, scores: Tensor) -> Tensor:
        """The places (k,), ascending, of the tokens that stay, from their scores (n,); ties go to the lower place."""
        best = scores.sort(descending=True, stable=True).indices[: self.count(len(scores))]
        return best.sort().values

    def merge(self, hidden: Tensor, kept: Tensor) -> Tensor:
        """Features (k, D) of the kept tokens, in the dtype of hidden, with the dropped ones merged in as set.

        Args:
            hidden: (n, D) hidden states of one video's tokens as the layer gets them.
            kept: (k,) places of those that stay, ascending.

        Every dropped token joins the kept one of highest cosine similarity (fp32; ties go to the lower place). "mean":
        share * kept + (1 - share) * (kept + sum of its joined) / (1 + their number). "sequential": each joined token in
        ascending place makes its target the mean of both, so that later ones weigh more.
        """
        anchors = hidden[kept]
        if self.merging == "drop" or len(kept) == len(hidden):
            return anchors
        left = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device).index_fill_(0, kept, False)
        dropped = hidden[left]
        target = most_similar(dropped[None], anchors[None]).indices[0]
        joined = torch.bincount(target, minlength=len(kept))
        if self.merging == "mean":
            sums = anchors.float().index_add(0, target, dropped.float())
            merged = self.anchor_share * anchors.float() + (1 - self.anchor_share) * sums / (1 + joined)[:, None]
        else:
            # The i-th of m joined tokens is halved m - i + 1 times, the target itself m times.
            halvings = joined[target] - ranks(target, joined)
            weighted = dropped.float() * torch.exp2(-halvings.float())[:, None]
            merged = (anchors.float() * torch.exp2(-joined.float())[:, None]).index_add(0, target, weighted)
        return torch.where((joined > 0)[:, None], merged.to(hidden.dtype), anchors)


def attention_row(query: Tensor, keys: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Softmax attention of one query a row over the keys it sees: (B, H, n), fp32.

    Args:
        query: (B, H, d), rotated; keys: (B, G, n, d), rotated, G heads of keys, each for H / G heads of queries.
        visible: (B, n) bool, which keys the query attends to, at least one a row.
        scaling: factor of the inner products.
    """
    batch, groups, length, width = keys.shape
    grouped = query.float().view(batch, groups, -1, width)
    products = (grouped @ keys.float().transpose(2, 3)).view(batch, -1, length) * scaling
    return products.masked_fill(~visible[:, None], -math.inf).softmax(-1)


def ranks(groups: Tensor, sizes: Tensor) -> Tensor:
    """The place (m,), from 0, of each element among those of its own group (m,), given the sizes (k,) of the groups."""
    order = groups.sort(stable=True).indices
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return torch.empty_like(places).index_copy_(0, order, places)


def check_layer(name: str, layer: int, layers: int) -> None:
    """Raise ValueError unless a language model of that many layers can be pruned before `layer`: 1 .. layers - 1."""
    if not 1 <= layer < layers:
        raise ValueError(
            f"{name} = {layer}: a language model of {layers} layers can be pruned before layers 1 to {layers - 1}"
        )


def before_layer(
    name: str, layer: int | None, layers: int, retention_ratio: float, retention: float, **settings: Any
) -> LayerPruning | None:
    """LayerPruning before a layer of so many; None where there is no such layer, or nothing would be dropped.

    name: of the setting that names the layer. retention_ratio: of the whole. settings: see LayerPruning.
    """
    if layer is None:
        return None
    check_layer(name, layer, layers)
    return None if 1 in (retention_ratio, retention) else LayerPruning(layer, retention, **settings)


def prefill_ratio(ratio: float, layers: int, layer: int, retention: float) -> float:
    """The share to keep before the language model so that the mean over its layers is `ratio`, at most 1.

    min(1, N r / (K + (N - K) p)) for N layers of which those from K on keep the share p of what comes in (Tango,
    arXiv 2604.09547).
    """
    return min(1.0, layers * ratio / (layer + (layers - layer) * retention))


def average_ratio(before: float, inside: float, layers: int, layer: int) -> float:
    """The mean over N layers of what K of them and the N - K later ones see: (K before + (N - K) inside) / N."""
    return (layer * before + (layers - layer) * inside) / layers
