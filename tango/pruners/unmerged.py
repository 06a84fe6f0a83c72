"""Keeping tokens as they are, for methods that merge nothing."""

import torch
from torch import Tensor

from tango.pruners.video import Pruned, VideoTokens


def whole(video: VideoTokens) -> Pruned:
    """Every token as it came, in one segment."""
    return keep(video.features, torch.arange(video.features[..., 0].numel()))


def keep(features: Tensor, indices: Tensor) -> Pruned:
    """Keep tokens unmerged at their places: features (F, L, D), indices (K,) flat; the video is one segment."""
    indices = indices.to(features.device)
    frames, _, dim = features.shape
    return Pruned(indices, features.reshape(-1, dim)[indices], torch.tensor([frames]))
