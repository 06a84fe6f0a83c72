"""Made-up videos for the tests: features, saliency, grid and timestamps from a seed; and pruning them."""

from __future__ import annotations

import torch

from tango.pruners import Pruned, Pruner


def made_up(
    frames: int,
    grid: tuple[int, int],
    dim: int,
    seed: int = 0,
    *,
    scenes: int = 2,
    noise: float = 0.3,
    moving: float = 0.4,
    copies: float = 0.0,
    zeros: float = 0.0,
    dtype: torch.dtype = torch.float32,
):
    """A video of a few still scenes with noise, in which a share of the positions moves.

    copies: share of the tokens that are exact copies of the video's first token, saliency included.
    zeros: share of the tokens that are all zero.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    common = torch.randn(dim, generator=generator)
    places = common + torch.randn(scenes, tokens, dim, generator=generator)
    scene = (torch.arange(frames) * scenes) // frames
    features = places[scene] + noise * torch.randn(frames, tokens, dim, generator=generator)
    moves = torch.rand(frames, tokens, generator=generator) < moving
    moves &= torch.rand(tokens, generator=generator) < 0.5
    features = torch.where(moves[..., None], common + torch.randn(features.shape, generator=generator), features)
    saliency = torch.rand(frames, tokens, generator=generator)
    same = torch.rand(frames, tokens, generator=generator) < copies
    features[same], saliency[same] = features[0, 0].clone(), saliency[0, 0].clone()
    features[torch.rand(frames, tokens, generator=generator) < zeros] = 0
    timestamps = torch.arange(frames) * 0.5 + 0.1 * torch.rand(frames, generator=generator)
    return features.to(dtype), saliency, grid, timestamps


def prune(method: Pruner, video) -> Pruned:
    """prune() of a made-up video, with made-up values for whatever else the method asks for."""
    features, saliency, grid, times = video
    generator = torch.Generator().manual_seed(5)
    extra = {
        "segment_features": features.float().mean(1),
        "frame_vectors": features.float().mean(1),
        "keys": torch.randn(*features.shape[:2], 6, generator=generator),
        "key": "clip",
    }
    return method.prune(features, saliency, grid, times, **{n: extra[n] for n in method.needs if n in extra})
