"""PruneVid before the language model: still places of a scene once, and every set of tokens clustered and averaged.

Huang et al., arXiv 2412.16117, from the paper's steps. Features only. What it does inside the language model is not
part of it.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.ops.density import assign, density_peaks
from tango.ops.merging import segment_sums
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision
from tango.pruners.budget import apportion
from tango.pruners.settings import Cosine, Count, OneOf, PositiveShare, Share, reject
from tango.pruners.video import Pruned, VideoTokens

ORDERS = ("published", "ascending")
NO_LABEL = -1


@dataclass
class PruneVid(Pruner):
    """PruneVid (spatial-temporal token merging), arXiv 2412.16117. Published: cluster_ratio 0.5, and no ratio to meet.

    Frames are clustered by their mean tokens into scenes; a place is static in a scene if its tokens are alike there.
    The static tokens of a scene (means over its frames) are one set and the dynamic tokens of each frame another; a
    set of more than `merge_above` tokens is clustered around density peaks and each cluster becomes its plain mean,
    at its centre's place (static: in the scene's first frame). How many tokens come out depends on the content.

    Args:
        retention_ratio: share of the tokens to keep at most, by the largest cluster_ratio that does; if none does, as
            few as there can be. Not used where cluster_ratio is given, but 1 keeps every token as it is.
        saliency, saliency_weights: not used.
        exact_budget: see Pruner; in place of one cluster_ratio, sets that are merged share the budget in proportion to
            their sizes by largest remainder, at least 1 each. Sets not above merge_above are only merged where the
            budget would not hold them otherwise, and then in the same proportion as all. A budget larger than all sets
            takes back the tokens of static places that are least like their means, as they are.
        tau: mean cosine of a place's tokens above which it is static.
        temporal_segment_ratio: centres for the clustering of frames, as a share of the frames (at least one centre).
        cluster_ratio: share of a merged set's tokens that stays, (0, 1], at least one token; None: see retention_ratio.
        num_neighbors: neighbours for the density, the token itself counted.
        merge_above: largest set that is kept as it is.
        order: "published", by scene its static tokens, then its dynamic ones frame by frame, merged tokens by the score
            of their centres; or "ascending".

    Raises:
        ValueError: a field is out of its range, or cluster_ratio is given beside exact_budget.
    """

    name: ClassVar[str] = "prunevid"

    tau: Cosine = 0.8
    temporal_segment_ratio: Share = 0.25
    cluster_ratio: PositiveShare | None = None
    num_neighbors: Count = 7
    merge_above: Count = 14
    order: Annotated[str, OneOf(*ORDERS)] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster_ratio is not None and self.exact_budget:
            reject(self, "cluster_ratio", "None with exact_budget, which sets it")

    def _prune(self, video: VideoTokens) -> Pruned:
        with full_precision(video.features.device, gradients=True):
            return self._merged(video.features)

    def _merged(self, features: Tensor) -> Pruned:
        frames, tokens, dim = features.shape
        device = features.device
        sizes = scenes(features.detach().mean(1, dtype=torch.float32), self.temporal_segment_ratio, self.num_neighbors)
        starts = sizes.cumsum(0) - sizes
        still = torch.stack([
            static_places(features[start : start + size].detach(), self.tau)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ])  # fmt: skip
        trace.static(still.repeat_interleave(sizes.to(device), 0))
        # Sets in the order of the output: for each scene its static one, then one for each of its frames.
        static = still.sum(1).cpu()
        set_sizes = torch.cat(
            [torch.cat([s[None], (tokens - s).expand(n)]) for s, n in zip(static, sizes, strict=True)]
        )
        counts = iter(torch.split(self._counts(set_sizes, frames * tokens), (sizes + 1).tolist()))

        kept: list[tuple[Tensor, Tensor]] = []
        for start, size, fixed in zip(starts.tolist(), sizes.tolist(), still, strict=True):
            part, (of_static, *of_frames) = features[start : start + size], next(counts).tolist()
            unmoved, moving = fixed.nonzero()[:, 0], (~fixed).nonzero()[:, 0]
            offsets = tokens * torch.arange(start, start + size, device=device)[:, None]
            if of_static:
                means = part[:, unmoved].mean(0, dtype=torch.float32)
                centres, values = self._merge(means[None], of_static, (unmoved + offsets).T)
                kept.append((start * tokens + unmoved[centres[0]], values[0]))
            if not len(moving):
                continue
            # Frames with as many tokens to keep are merged together.
            indices: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=device)] * size
            merged: list[Tensor] = [torch.empty(0, dim, dtype=torch.float32, device=device)] * size
            for count in sorted(set(of_frames) - {0}):
                chosen = [frame for frame in range(size) if of_frames[frame] == count]
                those = torch.tensor(chosen, device=device)
                rows = moving + offsets[those]
                centres, values = self._merge(part[those][:, moving].float(), count, rows.flatten())
                for place, frame in enumerate(chosen):
                    indices[frame] = rows[place, centres[place]]
                    merged[frame] = values[place]
            kept.append((torch.cat(indices), torch.cat(merged)))
        places, values = torch.cat([homes for homes, _ in kept]), torch.cat([rows for _, rows in kept])
        if self.order == "ascending":
            places, order = places.sort()
            values = values[order]
        pruned = Pruned(places, values.to(features.dtype), sizes)
        if self.exact_budget and len(places) < self.budget(frames, tokens):
            unlike = [
                -torch.cosine_similarity(part, part.mean(0, keepdim=True), dim=-1)
                for part in torch.split(features.detach().float(), sizes.tolist())
            ]
            return self.exactly(pruned, features, torch.cat(unlike))
        return pruned

    def _counts(self, sizes: Tensor, total: int) -> Tensor:
        """Tokens to keep of each set, (S,) int64, from the sizes of all sets of the video."""
        large = sizes > self.merge_above
        if self.exact_budget:
            budget = min(self.budget(1, total), int(sizes.sum()))
            left = budget - int(sizes[~large].sum()) - int(large.sum())
            if left < 0:
                return apportion(sizes, sizes, budget)
            counts = sizes.clone()
            if large.any():
                counts[large] = 1 + apportion(sizes[large] - 1, sizes[large] - 1, left)
            return counts

        def at(ratio: float) -> Tensor:
            return torch.where(large, (sizes.double() * ratio).long().clamp(min=1), sizes)

        if self.cluster_ratio is not None:
            return at(self.cluster_ratio)
        low, high = 0.0, 1.0
        limit = self.retention_ratio * total
        if int(at(1.0).sum()) <= limit:
            return at(1.0)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if int(at(middle).sum()) <= limit else (low, middle)
        return at(low)

    def _merge(self, sets: Tensor, count: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Merge G sets (G, n, D) fp32 to `count` tokens: their centres (G, count) by score, and means (G, count, D).

        tokens: (G * n, ..) of the video that each of them stands for, see trace.merged().
        """
        groups, size, dim = sets.shape
        rows = torch.arange(groups * size, device=sets.device)
        if count == size:
            trace.merged(rows, rows, tokens)
            return torch.arange(size, device=sets.device).expand(groups, size), sets
        points = sets.detach() / dim**0.5
        peaks = density_peaks(points, count, self.num_neighbors, itself=True)
        cluster = assign(points, peaks, by_score=True)
        trace.merged(rows, peaks.indices.gather(1, cluster) + rows[::size, None], tokens)
        cluster = cluster + count * torch.arange(groups, device=sets.device)[:, None]
        sums = segment_sums(sets.flatten(0, 1), rows, cluster.flatten(), groups * count)
        members = torch.bincount(cluster.flatten(), minlength=groups * count)[:, None]
        return peaks.indices, (sums / members).view(groups, count, dim)


def scenes(frame_means: Tensor, ratio: float = 0.25, num_neighbors: int = 7) -> Tensor:
    """Cut a video into scenes: frames clustered by their means, stray frames given to the runs beside them.

    Args:
        frame_means: (F, D) fp32, the mean token of each frame.
        ratio: centres as a share of the frames, at least one centre.
        num_neighbors: neighbours for the density, the frame itself counted.

    Returns:
        (S,) int64 on the CPU, frames in each scene; at least two each if F > 1.
    """
    frames, dim = frame_means.shape
    points = (frame_means / dim**0.5)[None]
    peaks = density_peaks(points, max(1, int(frames * ratio)), num_neighbors, itself=True)
    return torch.tensor(repaired(assign(points, peaks, by_score=True)[0].tolist()))


def repaired(labels: Sequence[int]) -> list[int]:
    """Lengths of the runs of labels (integers of at least 0) after the repair.

    Each label keeps its longest runs (all that tie) if they have two frames or more. Then, from left to right, each
    stretch without a label takes that of the longer run beside it (the left one if they tie), lengths counted with
    what was repaired before.
    """
    runs = _joined((label, 1) for label in labels)
    longest = {label: max(length for other, length in runs if other == label) for label in set(labels)}
    runs = _joined((label if length == max(2, longest[label]) else NO_LABEL, length) for label, length in runs)
    while len(runs) > 1 and (at := next((i for i, (label, _) in enumerate(runs) if label == NO_LABEL), -1)) >= 0:
        beside = runs[max(0, at - 1) : at] + runs[at + 1 : at + 2]
        label, _ = max(beside, key=lambda run: run[1])  # the first, which is the left one, of equals
        runs = _joined((label, length) if i == at else (other, length) for i, (other, length) in enumerate(runs))
    return [length for _, length in runs]


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs (label, length) with neighbours of the same label put together."""
    groups = itertools.groupby(runs, key=lambda run: run[0])
    return [(label, sum(length for _, length in group)) for label, group in groups]


def static_places(features: Tensor, tau: float = 0.8) -> Tensor:
    """Places whose tokens are alike in a scene: the mean cosine of all pairs of different frames is above tau.

    Args:
        features: (W, L, D) of one scene, any floating dtype.

    Returns:
        (L,) bool; all False for a scene of one frame.
    """
    frames = features.shape[0]
    if frames == 1:
        return torch.zeros(features.shape[1], dtype=torch.bool, device=features.device)
    units = torch.nn.functional.normalize(features.float(), dim=-1)
    # The sum over ordered pairs is the square of the sum less the squares themselves.
    pairs = units.sum(0).square().sum(-1) - units.square().sum((0, 2))
    return pairs / (frames * (frames - 1)) > tau
