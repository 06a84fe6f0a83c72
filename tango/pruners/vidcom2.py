"""VidCom2: frames unlike the rest of the video keep more tokens, and each frame keeps its most unusual ones.

Liu et al., arXiv 2505.14454, from the paper's steps. Features only; nothing is merged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.pruners.base import Pruner, full_precision
from tango.pruners.budget import apportion
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


@dataclass
class VidCom2(Pruner):
    """VidCom2, arXiv 2505.14454. The published retention ratio is 0.25.

    A token's score is how much it is like the video's mean and its frame's mean, by a sum of Gaussian kernels on the
    half of the channels that vary least; the lowest scores stay. A frame's budget grows with how little its tokens are
    like the video's mean: L * min(1, r * (1 + p_f - 1 / F)), p the softmax of that over frames, rounded (halves to
    even) and at least 1. Ties go to the lower index.

    Scores are fp32 (the published code runs in the model's half precision, where many tie). Newline embeddings are
    laid out as by every other method; the published code for LLaVA-Video puts all of a frame's newlines after it.

    Args:
        retention_ratio, exact_budget: see Pruner. The exact budget is spread over frames in proportion to their
            budgets before rounding, by largest remainder, each frame keeping 1 where there is enough.
        saliency, saliency_weights: not used.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "vidcom2"

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        frames, tokens, _ = features.shape
        with full_precision(features.device):
            like_video, like_frame = likeness(features)
            shares = frame_scales(like_video, self.retention_ratio) * tokens
            if self.exact_budget:
                budget = self.budget(frames, tokens)
                least = int(budget >= frames)
                caps = torch.full((frames,), tokens - least)
                budgets = least + apportion((shares - least).clamp(min=0), caps, budget - least * frames)
            else:
                budgets = shares.round().long().clamp(1, tokens)
            ranked = (like_video + like_frame).sort(dim=1, stable=True).indices
            first = torch.arange(tokens, device=features.device) < budgets.to(features.device)[:, None]
            kept = torch.zeros_like(first).scatter_(1, ranked, first)
        return keep(features, kept.flatten().nonzero()[:, 0])


def likeness(features: Tensor) -> tuple[Tensor, Tensor]:
    """How much each token is like the mean of the video and like the mean of its frame.

    Args:
        features: (F, L, D) any floating dtype.

    Returns:
        twice (F, L) fp32, sums of the kernels exp(-distance^2 / (2 a)) for a = 1/8, 1/4, 1/2, 1, 2.
    """
    values = features.float()
    variance = values.flatten(0, 1).var(dim=0, correction=0)
    channels = variance.sort(stable=True).indices[: max(1, len(variance) // 2)]
    units = torch.nn.functional.normalize(values[..., channels.sort().values], dim=-1)

    def kernel(centre: Tensor) -> Tensor:
        squares = (units - centre).square().sum(-1)
        return torch.stack([torch.exp(-squares / (2 * width)) for width in BANDWIDTHS]).sum(0)

    return kernel(units.mean(dim=(0, 1))), kernel(units.mean(dim=1, keepdim=True))


def frame_scales(like_video: Tensor, ratio: float) -> Tensor:
    """The share of its tokens that each frame keeps, (F,) fp32, from how like the video its tokens are, (F, L)."""
    frames = like_video.shape[0]
    unlike = -like_video.mean(dim=1)
    weight = torch.softmax((unlike - unlike.max()) / TEMPERATURE, dim=0)
    return (ratio * (1 + weight - 1 / frames)).clamp(max=1.0)
