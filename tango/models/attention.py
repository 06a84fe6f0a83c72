"""Saliency and keys from the queries and keys of a vision tower's last attention, as the tower itself projects them."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from tango.pruners.base import full_precision

QUERY_BYTES = 128 << 20  # of rotated queries and keys in fp32 at once, at least a frame's
MAP_BYTES = 256 << 20  # of softmax weights at once, never a whole frame's map if that is larger


def mean_query_saliency(query: Tensor, key: Tensor, scaling: float, group: int) -> Tensor:
    """Attention (F, L) of each frame's mean query to its tokens' mean keys (Tango, arXiv 2604.09547).

    query, key: (F, L * group, heads, d), the patches of a token side by side. Softmax over the tokens of a frame, mean
    over heads.
    """
    scores = torch.einsum("fhd,flhd->fhl", query.mean(1), by_token(key, group)) * scaling
    return scores.softmax(-1).mean(1)


def received_saliency(query: Tensor, key: Tensor, scaling: float, group: int) -> Tensor:
    """Attention (F, L) that the patches of a token receive on average from all patches of their frame, mean over heads.

    The saliency of VisionZip for towers without a class token (arXiv 2412.04467), HoliTom (arXiv 2505.21334) and
    FlashVID (arXiv 2602.08024). Arguments as in mean_query_saliency().
    """
    frames, patches, heads, _ = query.shape
    received = torch.zeros(frames, patches, dtype=torch.float32, device=query.device)
    for own, queries, keys in zip(received, query.transpose(1, 2), key.permute(0, 2, 3, 1), strict=True):
        for part in torch.split(queries, max(1, MAP_BYTES // (4 * heads * patches)), dim=1):
            own += (part @ keys * scaling).softmax(-1).sum((0, 1))
    return by_token(received / (heads * patches), group)


def mean_keys(query: Tensor, key: Tensor, scaling: float, group: int) -> Tensor:
    """Keys (F, L, d), mean over heads and over each token's patches. Arguments as in mean_query_saliency()."""
    return by_token(key.mean(2), group)


def by_token(patches: Tensor, group: int) -> Tensor:
    """Means over the patches of each token: (F, L * group, ..) to (F, L, ..)."""
    return patches.view(len(patches), -1, group, *patches.shape[2:]).mean(2)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (.., d) by cosines and sines (.., d), component i paired with i + d/2."""
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


SALIENCIES: dict[str, Callable[..., Tensor]] = {
    "global_query": mean_query_saliency,
    "received_attention": received_saliency,
}


def parts_of_attention(needs: Collection[str], saliency: str) -> dict[str, Callable[..., Tensor]]:
    """Which of the parts of VideoTokens that a method needs are read from queries and keys, and by what."""
    parts = {"keys": mean_keys} | ({"saliency": SALIENCIES[saliency]} if saliency in SALIENCIES else {})
    return {name: part for name, part in parts.items() if name in needs}


def from_attention(
    parts: Mapping[str, Callable[..., Tensor]],
    queries: Tensor,
    keys: Tensor,
    heads: int,
    scaling: float,
    group: int = 1,
    rotation: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """Parts of VideoTokens, one entry a frame, from the queries and keys (F, P, E) of an attention.

    parts: see parts_of_attention(). group: patches in a token. rotation: cosines and sines (F, P, E / heads), if any.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in parts}
    step = max(1, QUERY_BYTES // (12 * queries[0].numel()))  # no copy of all in fp32
    with full_precision(queries.device):
        for chunk in zip(*(torch.split(x, step) for x in (queries, keys, *rotation)), strict=True):
            query, key = (x.unflatten(2, (heads, -1)).float() for x in chunk[:2])
            if rotation:
                cos, sin = (x.float()[:, :, None] for x in chunk[2:])
                query, key = rotate(query, cos, sin), rotate(key, cos, sin)
            for name, part in parts.items():
                found[name].append(part(query, key, scaling, group))
    return {name: torch.cat(chunks) for name, chunks in found.items()}
