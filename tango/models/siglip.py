"""What a SigLIP vision tower tells about its patches: hidden states, saliency, keys, and a vector for each frame.

Two saliencies are the attention of one query a frame, so no attention map is needed: with the key projection folded
into the query (q . (W x + b) = (W^T q) . x + const, and the constant cancels in the softmax) each costs one product of
the hidden states with a (heads, D) matrix. The third, what a patch receives from all others, takes a map, one frame at
a time. Computed in fp32 whatever the tower's dtype; callers turn autocast off.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from tango.models.attention import received_attention

# Tensors of the pooling head by the names they have below the vision model.
ATTENTION_TENSORS = (
    "post_layernorm.weight", "post_layernorm.bias", "head.probe",
    "head.attention.in_proj_weight", "head.attention.in_proj_bias",
)  # fmt: skip
OUTPUT_TENSORS = (
    "head.attention.out_proj.weight", "head.attention.out_proj.bias", "head.layernorm.weight", "head.layernorm.bias",
    "head.mlp.fc1.weight", "head.mlp.fc1.bias", "head.mlp.fc2.weight", "head.mlp.fc2.bias",
)  # fmt: skip


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the head that fits a tower with this SiglipVisionConfig."""
    width, inner = config.hidden_size, config.intermediate_size
    vector = (width,)
    return {
        "post_layernorm.weight": vector,
        "post_layernorm.bias": vector,
        "head.probe": (1, 1, width),
        "head.attention.in_proj_weight": (3 * width, width),
        "head.attention.in_proj_bias": (3 * width,),
        "head.attention.out_proj.weight": (width, width),
        "head.attention.out_proj.bias": vector,
        "head.layernorm.weight": vector,
        "head.layernorm.bias": vector,
        "head.mlp.fc1.weight": (inner, width),
        "head.mlp.fc1.bias": (inner,),
        "head.mlp.fc2.weight": (width, inner),
        "head.mlp.fc2.bias": vector,
    }


class PoolingHead:
    """SigLIP's attention pooling (arXiv 2303.15343): a learned probe attends to all patches of a frame.

    tensors: ATTENTION_TENSORS, and OUTPUT_TENSORS too where pooled() is wanted. config: a SiglipVisionConfig.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: Any) -> None:
        # Copies: products of tensors that lie unaligned in a mapped file round differently.
        self.tensors = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}
        self.heads: int = config.num_attention_heads
        self.eps: float = config.layer_norm_eps
        self.activation: Callable[[Tensor], Tensor] = ACT2FN[config.hidden_act]
        query, key, _ = self.tensors["head.attention.in_proj_weight"].chunk(3)
        bias = self.tensors["head.attention.in_proj_bias"].chunk(3)[0]
        with torch.autocast(query.device.type, enabled=False):
            probe = query @ self.tensors["head.probe"].flatten() + bias
            self.tensors["folded"] = fold(probe[None], key, self.heads)[0]

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


def fold(queries: Tensor, key_weight: Tensor, heads: int) -> Tensor:
    """Queries (F, D) and the key projection (D, D) as one vector a head over its input, scaled: (F, heads, D)."""
    width = queries.shape[-1] // heads
    queries = queries.view(len(queries), heads, width) * width**-0.5
    return torch.einsum("fho,hod->fhd", queries, key_weight.view(heads, width, -1))


def mean_query_saliency(layer: Any, hidden: Tensor) -> Tensor:
    """Attention (F, P) of each frame's mean query to its patches in an encoder layer, averaged over heads.

    hidden (F, P, D) is the layer's input. The mean over a frame of its queries is the query of its mean.
    """
    attention, normed = layer.self_attn, normed_input(layer, hidden)
    queries = F.linear(normed.mean(1), attention.q_proj.weight.float(), attention.q_proj.bias.float())
    folded = fold(queries, attention.k_proj.weight.float(), attention.num_heads)
    return torch.softmax(folded @ normed.mT, dim=-1).mean(1)


def received_saliency(layer: Any, hidden: Tensor) -> Tensor:
    """Attention (F, P) that each patch receives in an encoder layer from all of its frame, mean over heads and queries.

    hidden (F, P, D) is the layer's input.
    """
    attention = layer.self_attn
    weights = [
        (projection.weight.float(), projection.bias.float()) for projection in (attention.q_proj, attention.k_proj)
    ]
    frames = []
    for frame in hidden:  # one at a time: a map is heads x P x P
        normed = normed_input(layer, frame)
        queries, keys = (
            F.linear(normed, *own).view(len(normed), attention.num_heads, -1).transpose(0, 1) for own in weights
        )
        frames.append(received_attention(queries, keys, queries.shape[-1] ** -0.5))
    return torch.stack(frames)


def mean_keys(layer: Any, hidden: Tensor) -> Tensor:
    """Keys (F, P, D / heads) of an encoder layer, with their bias, averaged over heads; hidden (F, P, D) goes in."""
    projection, heads = layer.self_attn.k_proj, layer.self_attn.num_heads
    weight = projection.weight.float().view(heads, -1, hidden.shape[-1]).mean(0)
    return F.linear(normed_input(layer, hidden), weight, projection.bias.float().view(heads, -1).mean(0))


def normed_input(layer: Any, hidden: Tensor) -> Tensor:
    """What an encoder layer's attention sees of the layer's input (.., D), in fp32."""
    norm = layer.layer_norm1
    return F.layer_norm(hidden.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


@contextlib.contextmanager
def recorded_states(tower: Any, wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """While open, a call of the tower leaves the wanted hidden states (F, P, D) in the dictionary that this yields.

    State i is the input of encoder layer i, and state n the output of the last of n layers, as in transformers'
    `hidden_states`; the others are not held, which matters: at 384 pixels all of them take 45 MB a frame in bf16.
    """
    layers = tower.encoder.layers
    states: dict[int, Tensor] = {}

    def keep(index: int, tensor: Tensor) -> None:
        states[index] = tensor

    hooks = []
    try:
        for index in wanted:
            if index < len(layers):
                hooks.append(layers[index].register_forward_pre_hook(lambda _, args, i=index: keep(i, args[0])))
            else:
                hooks.append(layers[-1].register_forward_hook(lambda _, args, output, i=index: keep(i, output)))
        yield states
    finally:
        for hook in hooks:
            hook.remove()
