"""A made-up video with ordinary motion: scenes with cuts, a still or slowly moving camera, a few things that move.

What a video shows decides how much of it is static, and so what pruning costs; the time of the models does not depend
on it. Frames are as after normalisation, numbers of about -1 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCENE = 16  # frames from cut to cut
THINGS = 3  # that move in each scene
NOISE = 0.02  # of the camera, in every pixel of every frame


def texture(height: int, width: int, generator: torch.Generator) -> Tensor:
    """(3, height, width): coarse patches of colour and some finer detail."""
    parts = []
    for cells, size in ((6, 0.5), (40, 0.15)):
        coarse = size * torch.randn(1, 3, cells, cells, generator=generator)
        parts.append(F.interpolate(coarse, size=(height, width), mode="bilinear")[0])
    return parts[0] + parts[1]


def video(frames: int, height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Frames (F, 3, height, width). The same seed gives the same frames, whatever their number."""
    out = torch.empty(frames, 3, height, width, dtype=dtype)
    for scene, first in enumerate(range(0, frames, SCENE)):
        generator = torch.Generator().manual_seed(1000 * seed + scene)
        background = texture(height, width, generator)
        sides = [max(1, int(height * share)) for share in (0.12, 0.18, 0.25)]
        things = [texture(side, side, generator) + 0.5 * torch.randn(3, 1, 1, generator=generator) for side in sides]
        starts = torch.rand(THINGS, 2, generator=generator)
        speeds = 0.06 * torch.randn(THINGS, 2, generator=generator)  # of the picture's size, a frame
        pan = scene % 2 * max(1, width // 200)  # pixels a frame, in every other scene
        for frame in range(first, min(first + SCENE, frames)):
            picture = background.roll(-pan * (frame - first), 2).clone()
            for thing, start, speed in zip(things, starts, speeds, strict=True):
                side = thing.shape[1]
                place = (start + speed * (frame - first)) % 1 * torch.tensor([height - side + 1, width - side + 1])
                top, left = (int(value) for value in place)
                picture[:, top : top + side, left : left + side] = thing
            out[frame] = picture + NOISE * torch.randn(picture.shape, generator=generator)
    return out


def packed(frames: Tensor, patch: int, merge: int = 2, together: int = 2) -> tuple[Tensor, tuple[int, int, int]]:
    """Frames (F, 3, H, W) as Qwen's processors pack them, and their grid of patches (t, h, w).

    A patch spans `together` frames; patches lie in the order of the merge x merge blocks they are merged in. Returns
    (t*h*w, 3*together*patch**2). The last frame is repeated where it takes more of them.
    """
    if missing := -len(frames) % together:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    t, h, w = len(frames) // together, frames.shape[2] // patch, frames.shape[3] // patch
    cut = frames.view(t, together, 3, h // merge, merge, patch, w // merge, merge, patch)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)
