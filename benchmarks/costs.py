"""What each stage must at least compute and move, and how fast this machine can do that at best.

A floor is the larger of FLOPs over the measured rate of a large matrix product and bytes over the measured bandwidth
of a large copy. FLOPs are those of matrix products, 2 for a multiplication and an addition, as
torch.utils.flop_counter counts them, which the tests hold these functions against; bytes are weights, inputs and
outputs once each, and nothing that could stay on the chip.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """FLOPs in the dtype of the model, FLOPs in fp32, and bytes."""

    flops: float = 0.0
    single: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of matrix products in the dtype of the model and in (true) fp32; bytes/s of a copy, read and written."""

    flops: float
    single: float
    bandwidth: float

    def floor(self, cost: Cost) -> float:
        """Seconds that the cost takes at least."""
        return max(cost.flops / self.flops + cost.single / self.single, cost.bytes / self.bandwidth)

    def __str__(self) -> str:
        rates = f"{self.flops / 1e12:.3g} TFLOP/s, in fp32 {self.single / 1e12:.3g}"
        return f"ceilings measured here: matrix product {rates}; copy {self.bandwidth / 1e9:.3g} GB/s"


def ceilings(device: torch.device, dtype: torch.dtype, size: int | None = None) -> Ceilings:
    """Measure them: medians of products of (size, size) matrices and of copies of 16 * size**2 bytes."""
    size = size or (8192 if device.type == "cuda" else 2048)

    def rate(kind: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        return matmul(size, size, size) / median_seconds(lambda: a @ b, device)

    source = torch.ones(4 * size * size, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    bandwidth = moved / median_seconds(lambda: target.copy_(source), device)
    single = rate(torch.float32)
    return Ceilings(single if dtype == torch.float32 else rate(dtype), single, bandwidth)


def median_seconds(call: Callable[[], Any], device: torch.device, runs: int = 7) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = []
    for _ in range(runs + 2):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


# -- FLOPs -----------------------------------------------------------------------------------------------------------


def matmul(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and mixed values of all heads; width: of all query heads together."""
    return 2 * matmul(queries, width, keys)


def siglip_tower(config: Any, frames: int) -> int:
    """A SigLIP tower (SiglipVisionConfig) on so many frames, without pooling head."""
    width, inner = config.hidden_size, config.intermediate_size
    patches = (config.image_size // config.patch_size) ** 2
    layer = matmul(patches, width, 4 * width + 2 * inner) + attention(patches, patches, width)
    embedding = matmul(patches, config.num_channels * config.patch_size**2, width)
    return frames * (embedding + config.num_hidden_layers * layer)


def projector(config: Any, frames: int) -> int:
    """LLaVA-OneVision's two linear layers (LlavaOnevisionConfig); pooling is no matrix product."""
    vision, text = config.vision_config, config.text_config.hidden_size
    return matmul(frames * (vision.image_size // vision.patch_size) ** 2, vision.hidden_size + text, text)


def pooling_head(config: Any, frames: int) -> int:
    """Saliency from SigLIP's pooling head (SiglipVisionConfig), the probe's keys folded into its query."""
    patches = (config.image_size // config.patch_size) ** 2
    return frames * matmul(config.num_attention_heads, config.hidden_size, patches)


def qwen_tower(config: Any, frames: int, height: int, width: int) -> int:
    """The tower of Qwen2.5-VL or Qwen3-VL with its mergers on so many frames of height x width patches."""
    own, inner, merge = config.hidden_size, config.intermediate_size, config.spatial_merge_size
    patches, tokens = height * width, height * width // merge**2
    windowed = hasattr(config, "window_size")
    mlp = (3 if windowed else 2) * inner  # gated or not
    weights = matmul(patches, own, 4 * own + mlp)
    whole = attention(patches, patches, own)
    flops = config.depth * weights
    if windowed:
        lengths = window_lengths(height, width, config.window_size // config.patch_size)
        full = sum(index < config.depth for index in config.fullatt_block_indexes)
        flops += full * whole + (config.depth - full) * sum(attention(n, n, own) for n in lengths)
        mergers = 1
    else:
        flops += config.depth * whole
        mergers = 1 + len(config.deepstack_visual_indexes)
    merger = matmul(tokens, own * merge**2, own * merge**2 + config.out_hidden_size)
    embedding = matmul(patches, config.in_channels * config.temporal_patch_size * config.patch_size**2, own)
    return frames * (flops + mergers * merger + embedding)


def window_lengths(height: int, width: int, side: int) -> list[int]:
    """Patches in each window of side x side patches over a frame; those at the edges are smaller."""
    rows = [min(side, height - top) for top in range(0, height, side)]
    return [row * min(side, width - left) for row in rows for left in range(0, width, side)]


def mean_query(config: Any, frames: int, height: int, width: int) -> int:
    """Qwen's saliency: one query a frame and head to the mean key of each token."""
    return frames * matmul(1, config.hidden_size, height * width // config.spatial_merge_size**2)


def decoder(config: Any, tokens: int, prompts: int = 1, cached: int = 0) -> int:
    """Prefill of prompts of so many tokens (text configuration), causal attention as half; logits of the last token.

    cached: tokens before them whose keys and values are there already.
    """
    heads, own, head = config.num_attention_heads, config.hidden_size, head_width(config)
    projections = 2 * heads * head + 2 * config.num_key_value_heads * head
    layer = matmul(tokens, own, projections + 3 * config.intermediate_size)
    layer += attention(tokens, tokens, heads * head) // 2 + attention(tokens, cached, heads * head)
    return prompts * (config.num_hidden_layers * layer + matmul(1, own, config.vocab_size))


def head_width(config: Any) -> int:
    """Width of a head of a decoder (text configuration)."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context_distances(sizes: Sequence[int], static: Sequence[int], length: int, width: int, ratio: float) -> int:
    """Distances between the tokens that Tango merges, each pair once, by matrix product: the bulk of its arithmetic.

    sizes (S,): frames of each segment; static (S,): its static places of `length`; width: of a token; ratio: kept.
    Budgets as in Tango's default settings.
    """
    total = 0
    for frames, still in zip(sizes, static, strict=True):
        still = still if frames > 1 else 0
        own = min(1.0, ratio / (1 - (frames - 1) * still / (frames * length)))
        merged = [(frames, length - still), (1, still)]  # groups of `frames` sets of so many tokens
        for sets, tokens in merged:
            salient = int(-(-tokens * own // 1) * 0.6)
            pool = sets * (tokens - salient)
            total += matmul(pool, width, pool) // 2
    return total


# -- bytes -----------------------------------------------------------------------------------------------------------


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters of some modules, less the tables that only single rows are read of."""
    tables = {id(m.weight) for module in modules for m in module.modules() if isinstance(m, nn.Embedding)}
    parameters = {id(p): p for module in modules for p in module.parameters() if id(p) not in tables}
    return sum(p.numel() * p.element_size() for p in parameters.values())


def cache_bytes(config: Any, tokens: int, element: int) -> int:
    """Keys and values of so many tokens in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(config) * tokens * element
