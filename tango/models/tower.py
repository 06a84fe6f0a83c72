"""What is computed in the vision tower of any family besides its features: saliency, keys, a vector for each frame.

Two sources: the queries and keys of the last attention in use, as the tower itself projects them, and SigLIP's pooling
head on the last hidden states. All in fp32 whatever the tower's dtype.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from tango.pruners.base import full_precision

QUERY_BYTES = 128 << 20  # of rotated queries and keys in fp32 at once, at least a frame's
MAP_BYTES = 256 << 20  # of softmax weights at once, never a whole frame's map if that is larger


@contextlib.contextmanager
def recorded(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Tensor]]:
    """While open, a call of a module leaves its output, under the module's name, in the dictionary that this yields.

    Only what is named is held, which matters: at 384 pixels the states of all layers of SigLIP take 45 MB a frame.
    """
    outputs: dict[Any, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda *call, name=name: outputs.update({name: call[-1]}))
        for name, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


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
    received = torch.zeros(frames, patches, device=query.device)
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
                query, key = (
                    x * cos + torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) * sin for x in (query, key)
                )
            for name, part in parts.items():
                found[name].append(part(query, key, scaling, group))
    return {name: torch.cat(chunks) for name, chunks in found.items()}


class PoolingHead:
    """SigLIP's attention pooling (arXiv 2303.15343): a learned probe attends to all patches of a frame.

    tensors: by their names below the vision model, see tango.models.pooling_head, which reads them; those of the output
    only where pooled() is wanted. config: a SiglipVisionConfig.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: Any) -> None:
        # Copies: products of tensors that lie unaligned in a mapped file round differently.
        self.tensors = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}
        self.heads: int = config.num_attention_heads
        self.eps: float = config.layer_norm_eps
        self.activation: Callable[[Tensor], Tensor] = ACT2FN[config.hidden_act]
        query, key, _ = self.tensors["head.attention.in_proj_weight"].chunk(3)
        bias = self.tensors["head.attention.in_proj_bias"].chunk(3)[0]
        # One query a frame, so no key is needed: q . (W x + b) = (W^T q) . x + a constant that softmax cancels.
        with torch.autocast(query.device.type, enabled=False):
            probe = (query @ self.tensors["head.probe"].flatten() + bias).view(1, self.heads, -1)
            probe, key = probe * probe.shape[-1] ** -0.5, key.view(self.heads, probe.shape[-1], -1)
            self.tensors["folded"] = torch.einsum("fho,hod->fhd", probe, key)[0]

    def attention(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of last hidden states (F, P, D) before post_layernorm: normed states (F, P, D) and weights (F, heads, P)."""
        self.tensors = {name: tensor.to(hidden.device) for name, tensor in self.tensors.items()}
        weight, bias = self.tensors["post_layernorm.weight"], self.tensors["post_layernorm.bias"]
        normed = F.layer_norm(hidden.float(), weight.shape, weight, bias, self.eps)
        return normed, torch.softmax(self.tensors["folded"] @ normed.mT, dim=-1)

    def pooled(self, normed: Tensor, weights: Tensor) -> Tensor:
        """The head's output (F, D) for what attention() returned."""
        t = self.tensors
        frames, _, width = normed.shape
        value, bias = t["head.attention.in_proj_weight"].chunk(3)[2], t["head.attention.in_proj_bias"].chunk(3)[2]
        mixed = torch.einsum("fhd,hod->fho", weights @ normed, value.view(self.heads, -1, width)).reshape(frames, width)
        out = F.linear(mixed + bias, t["head.attention.out_proj.weight"], t["head.attention.out_proj.bias"])
        inner = F.layer_norm(out, (width,), t["head.layernorm.weight"], t["head.layernorm.bias"], self.eps)
        inner = self.activation(F.linear(inner, t["head.mlp.fc1.weight"], t["head.mlp.fc1.bias"]))
        return out + F.linear(inner, t["head.mlp.fc2.weight"], t["head.mlp.fc2.bias"])


def joined(chunks: Iterable[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Tensors (n, ..) by name, a chunk at a time, as tensors (length, ..): filled in place, not held twice."""
    whole: dict[str, Tensor] = {}
    start = 0
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        if count == length:
            return {name: tensor.contiguous() for name, tensor in chunk.items()}
        for name, tensor in chunk.items():
            if name not in whole:
                whole[name] = tensor.new_empty(length, *tensor.shape[1:])
            whole[name][start : start + count] = tensor
        start += count
    return whole
