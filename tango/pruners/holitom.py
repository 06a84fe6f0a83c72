"""HoliTom: windows with the most static tokens, static tokens merged over time, and each frame's most attended ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.ops.density import assign
from tango.ops.merging import segment_sums
from tango.ops.segmentation import holitom, holitom_threshold, neighbour_similarity
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision
from tango.pruners.budget import fit
from tango.pruners.in_llm import LayerPruning, before_layer
from tango.pruners.peaks import ChoosePeaks, plain_peaks
from tango.pruners.settings import Cosine, Count, Saliency, Share, reject
from tango.pruners.video import Pruned, VideoTokens


@dataclass
class HoliTom(Pruner):
    """HoliTom, arXiv 2505.21334; without its part inside the language model unless `pruned_layer` is set.

    The video is cut into windows such that most tokens need to be stored only once (the same cut as Tango's default).
    A token is static in a window if it is more like the one at its place in the next frame than the threshold, all
    the way. Static ones are averaged over their window, and the budget so saved raises the ratio of the whole video to
    r' = min(1, r / ((F L - saved) / (F L))). Of S static positions round(S r') density peaks stay, each
    anchor_weight * peak + (1 - anchor_weight) * mean of the others that are nearest to it; of U others each frame
    keeps the ceil(U r') most salient, as they are. A window of one frame keeps its ceil(L r') most salient tokens.
    Where all that rounds to nothing, the most salient token of the video stays. The order is the published one: by
    window, its static tokens, which stand in its first frame, then the others frame by frame; so indices do not ascend.

    The published code carries one video's raised ratio over to the next of its batch; this one does not, and it has no
    merging of the other tokens, which cannot run as published. Inside the language model the published code's layer
    K-1 looks both ways; this one stays causal unless told otherwise.

    Args:
        retention_ratio, saliency_weights: see Pruner. 1 keeps every token as it is. The ratio is what enters the
            language model: pruning inside it comes on top.
        saliency: see Pruner; the paper's is the attention that a patch receives in the last vision layer in use.
        exact_budget: see Pruner. The least salient of the kept tokens go, or the most salient of the others come back,
            unmerged, until the number is right.
        similarity_threshold: similarity that must be exceeded to be static; None means 0.65 up to a retention ratio of
            0.1 and 0.8 above, as published.
        anchor_weight: share of itself that a peak has in a merged token.
        num_neighbors: neighbours for the density, the token itself among them; no more than there are peaks.
        max_window: most frames of a window.
        pruned_layer: layer of the language model, counted from 0, before which the dropped share of tokens is merged
            into the rest; None for no such step. The full method has 18, for language models of 28 layers.
        llm_drop_ratio: share that is dropped there.
        causal: with pruned_layer, False lets tokens of the prompt see later ones in the layer before it, as the
            published code does; only to reproduce its table.

    Raises:
        ValueError: a field is out of its range; or, on a model, the language model has no such layer.
    """

    name: ClassVar[str] = "holitom"
    needs = frozenset({"saliency"})

    saliency: Saliency | None = "received_attention"
    similarity_threshold: Cosine | None = None
    anchor_weight: Share = 0.6
    num_neighbors: Count = 7
    max_window: Count = 1024
    pruned_layer: Count | None = None
    llm_drop_ratio: Share = 0.5
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm_drop_ratio == 1:
            reject(self, "llm_drop_ratio", "a finite number in [0, 1)")

    def in_llm(self, layers: int) -> LayerPruning | None:
        """See Pruner.in_llm; each dropped token in turn makes the kept one it joins the mean of both, as published."""
        at, kept = ("HoliTom.pruned_layer", self.pruned_layer, layers), 1 - self.llm_drop_ratio
        return before_layer(*at, self.retention_ratio, kept, merging="sequential", causal=self.causal)

    def _prune(self, video: VideoTokens) -> Pruned:
        return self._kept(video, video.required("saliency"))

    def _kept(
        self,
        video: VideoTokens,
        saliency: Tensor,
        still: Callable[[Tensor], Tensor] | None = None,
        peaks: ChoosePeaks = plain_peaks,
    ) -> Pruned:
        """The method with a saliency (F, L) of any floating dtype, and the peaks that are asked for.

        still: where tokens with a similarity (F - 1, L) to the next frame's are static, once windows and ratio are
            known; None: above the threshold.
        """
        with full_precision(video.features.device, gradients=True):
            pruned = self._merged(video.features, saliency, still, peaks)
            return self.exactly(pruned, video.features, saliency)

    def _merged(
        self, features: Tensor, saliency: Tensor, still: Callable[[Tensor], Tensor] | None, peaks: ChoosePeaks
    ) -> Pruned:
        frames, tokens, dim = features.shape
        threshold = holitom_threshold(self.retention_ratio, self.similarity_threshold)
        similarity = neighbour_similarity(features.detach())
        sizes = holitom(similarity, threshold, self.max_window)
        starts = (sizes.cumsum(0) - sizes).tolist()
        windows = list(zip(starts, sizes.tolist(), strict=True))
        static = _static_places(similarity > threshold, windows)
        saved = int((static.sum(1).cpu() * (sizes - 1)).sum())
        ratio = min(1.0, self.retention_ratio / ((frames * tokens - saved) / (frames * tokens)))
        if still is not None:
            static = _static_places(still(similarity), windows)
        trace.static(static.repeat_interleave(sizes.to(features.device), 0))

        table = features.reshape(-1, dim)
        kept, values = [], []
        for (start, size), fixed in zip(windows, static, strict=True):
            offsets = tokens * torch.arange(start, start + size, device=features.device)[:, None]
            places, merged = self._static(table, fixed.nonzero()[:, 0] + offsets, ratio, peaks)
            moving = (~fixed).nonzero()[:, 0]
            count = min(len(moving), math.ceil(len(moving) * ratio))
            scores = saliency[start : start + size, moving]
            chosen = scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
            salient = (moving[chosen] + offsets).flatten()
            trace.salient(salient)
            kept += [places, salient]
            values += [merged.to(features.dtype), table[salient]]
        pruned = Pruned(torch.cat(kept), torch.cat(values), sizes)
        return pruned if len(pruned.indices) else fit(pruned, features, saliency, 1)

    def _static(self, table: Tensor, rows: Tensor, ratio: float, choose: ChoosePeaks) -> tuple[Tensor, Tensor]:
        """Indices (m,), ascending, and features (m, D) fp32 of a window's static tokens (N, S), merged."""
        size, total = rows.shape
        count = round(total * ratio)
        if count == 0:
            return rows[0, :0], table.new_empty(0, table.shape[1], dtype=torch.float32)
        positions = torch.arange(total, device=rows.device)
        means = segment_sums(table, rows.flatten(), positions.repeat(size), total) / size
        points = means[None].detach() / math.sqrt(table.shape[1])
        peaks = choose(points, count, min(self.num_neighbors, count), rows[:1])
        cluster = assign(points, peaks)[0]
        centres = peaks.indices[0].sort().values
        trace.merged(positions, centres[cluster], rows.T)
        joins = torch.ones_like(cluster, dtype=torch.bool).index_fill_(0, centres, False)
        sums = segment_sums(means, joins.nonzero()[:, 0], cluster[joins], count)
        joined = torch.bincount(cluster[joins], minlength=count)[:, None]
        blended = self.anchor_weight * means[centres] + (1 - self.anchor_weight) * sums / joined.clamp(min=1)
        return rows[0, centres], torch.where(joined > 0, blended, means[centres])


def _static_places(alike: Tensor, windows: Sequence[tuple[int, int]]) -> Tensor:
    """Where all pairs of neighbours in a window are alike (F - 1, L): (W, L) bool, none in windows of one frame."""
    none = torch.zeros_like(alike[:1]).any(0)
    return torch.stack([alike[start : start + size - 1].all(0) if size > 1 else none for start, size in windows])
