"""SToP: VisionZip, FastVID and HoliTom that turn away from attention sinks. arXiv 2604.20937, from the paper's steps.

A sink is a place of the frame that draws attention all through a video, whatever is there. Its score is the mean
attention over frames to the power gamma, scaled to 0 .. 1; wherever a method ranks tokens by saliency, it ranks them
by saliency - mu_s * score.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.ops.density import Peaks
from tango.pruners.base import Pruner
from tango.pruners.fastvid import FastVID
from tango.pruners.holitom import HoliTom
from tango.pruners.peaks import ChoosePeaks, lowered_peaks, plain_peaks
from tango.pruners.settings import Cosine, Integer, Number, OneOf, Positive, Saliency
from tango.pruners.video import Pruned, VideoTokens
from tango.pruners.visionzip import VisionZip, evenly_spaced

TARGETS = ("distinct", "published")
CENTRE_PENALTIES = ("published", "once")
Weight = Annotated[float, Number(least=0)]


@dataclass
class Stop(Pruner):
    """What SToP adds to any method, which comes first among the bases so that its defaults hold.

    Args:
        mu_s: how much of a place's sink score is taken off its saliency.
        gamma: power of the mean attention.
        saliency_mean: the mean saliency that mu_s was chosen for; mu_s then grows with the video's own. None: mu_s is
            used as it is, as published, which fits LLaVA's received attention, of 729 patches; for Qwen's give 1/729.

    Raises:
        ValueError: a field is out of its range; or a saliency is below 0, so that it has no such power.
    """

    mu_s: Weight = 0.03
    gamma: Positive = 1.1
    saliency_mean: Positive | None = None

    def _sinks(self, video: VideoTokens) -> tuple[Tensor, Tensor]:
        """The video's saliency (F, L) less its share of the sink scores, and these (L,); both fp64.

        In fp64 places of the same saliency have the same mean, however it is summed: the scaling to 0 .. 1 would make
        any difference a large one.
        """
        saliency = video.required("saliency").double()
        if (least := float(saliency.min())) < 0:
            raise ValueError(f"saliency must be at least 0 for {self.name}, as attention is, got {least:g}")
        powers = saliency.mean(0) ** self.gamma
        scores = (powers - powers.min()) / (powers.max() - powers.min() + 1e-12)
        scale = 1.0 if self.saliency_mean is None else saliency.mean() / self.saliency_mean
        return saliency - self.mu_s * scale * scores, scores


@dataclass
class StopVisionZip(VisionZip, Stop):
    """SToP on VisionZip, arXiv 2604.20937: see VisionZip, Stop, and the top of tango/pruners/stop.py.

    Dominant tokens are those of highest saliency - mu_s * sink score. Contextual ones, numbered among the others of
    their frame, avoid the numbers of the num_sinks strongest sinks: a number that is one of these goes up by one until
    it is not, and stays where that ends nowhere. (Numbers among the others are compared with places of a frame, as
    published, so it is not the sinks themselves that are avoided.)

    Args:
        targets: "distinct": a number goes on past those that are contextual tokens already. "published": it does not,
            so that two of them may be the same token, which then is kept twice: first with all that joined it, then as
            it is.
        num_sinks: how many sinks are avoided; 0 leaves contextual tokens where VisionZip has them.
    """

    name: ClassVar[str] = "stop_visionzip"

    targets: Annotated[str, OneOf(*TARGETS)] = "distinct"
    num_sinks: Annotated[int, Integer(0)] = 20

    def _prune(self, video: VideoTokens) -> Pruned:
        saliency, scores = self._sinks(video)
        sinks = scores.sort(descending=True, stable=True).indices[: self.num_sinks].tolist()
        return self._zipped(video, saliency, partial(self._moved, sinks))

    def _moved(self, sinks: list[int], count: int, others: int) -> Tensor:
        """The numbers of the contextual tokens among the others of a frame, (count,)."""
        numbers = evenly_spaced(count, others).tolist()
        taken = {*sinks} if self.targets == "published" else {*sinks, *numbers}
        for place, number in enumerate(numbers):
            if number in sinks:
                free = next((other for other in range(number + 1, others) if other not in taken), number)
                numbers[place] = free
                if self.targets == "distinct":
                    taken.add(free)
        return torch.tensor(numbers, dtype=torch.int64)


@dataclass
class StopFastVID(FastVID, Stop):
    """SToP on FastVID, arXiv 2604.20937: see FastVID, Stop, and the top of tango/pruners/stop.py.

    Salient tokens are those of highest saliency - mu_s * sink score, and a token's score as an anchor is lowered by
    centre_sink_weight * sink score.

    Args:
        saliency: see Pruner; the attention that a patch receives, where FastVID itself has the pooling head's.
        keep_positions: see Pruner; False as published.
        mu_s, gamma, saliency_mean: see Stop. With mu_s = 0 the scores of anchors are not lowered either, as published.
        centre_sink_weight: see above.
        centre_penalty: "published" takes it off twice in frames with more anchors than a frame's share of merged
            tokens; "once" does not.
    """

    name: ClassVar[str] = "stop_fastvid"

    saliency: Saliency | None = "received_attention"
    keep_positions: bool = False
    mu_s: Weight = 0.02
    centre_sink_weight: Weight = 0.3
    centre_penalty: Annotated[str, OneOf(*CENTRE_PENALTIES)] = "published"

    def _prune(self, video: VideoTokens) -> Pruned:
        saliency, scores = self._sinks(video)
        _, context = self._shares(len(scores))
        twice = self.centre_penalty == "published"
        peaks = _peaks(scores, self.centre_sink_weight * (self.mu_s > 0), context if twice else None)
        return self._kept(video, saliency, peaks)


@dataclass
class StopHoliTom(HoliTom, Stop):
    """SToP on HoliTom, arXiv 2604.20937: see HoliTom, Stop, and the top of tango/pruners/stop.py.

    Windows and the raised ratio are HoliTom's. A token is static if its similarity + mu_t * sink score is above
    static_threshold all through its window, which makes more of them, so that fewer tokens than the ratio says may
    come out. A static token's score as a peak is lowered by centre_sink_weight * sink score, and dynamic ones are kept
    by saliency - mu_s * sink score.

    Args:
        similarity_threshold: see HoliTom; 0.8 at any ratio as published.
        mu_t, static_threshold, centre_sink_weight: see above. The paper has one threshold for both.
    """

    name: ClassVar[str] = "stop_holitom"

    similarity_threshold: Cosine | None = 0.8
    mu_s: Weight = 0.04
    mu_t: Weight = 0.07
    static_threshold: Cosine = 0.8
    centre_sink_weight: Weight = 0.3

    def _prune(self, video: VideoTokens) -> Pruned:
        saliency, scores = self._sinks(video)

        def still(similarity: Tensor) -> Tensor:
            return similarity + self.mu_t * scores > self.static_threshold

        return self._kept(video, saliency, still, _peaks(scores, self.centre_sink_weight))


def _peaks(scores: Tensor, weight: float, twice_above: int | None = None) -> ChoosePeaks:
    """Peaks whose scores are lowered by weight * sink score (L,), twice that where more than so many are asked for."""

    def lowered(points: Tensor, count: int, num_neighbors: int, indices: Tensor) -> Peaks:
        times = 2 if twice_above is not None and count > twice_above else 1
        return lowered_peaks(points, count, num_neighbors, times * weight * scores[indices % len(scores)])

    return lowered if weight else plain_peaks
