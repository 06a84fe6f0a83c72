"""Queries and keys of a tower's attention, of all its heads, wherever tensor parallelism has put them."""

from __future__ import annotations

from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.models.vision import is_vit_use_data_parallel


def all_heads(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (.., E), from the output (.., 3 * E / ranks) of a linear layer whose heads are split over ranks.

    Heads lie in the order of ranks, so that joining each part's columns gives them as they are unsplit.
    """
    queries, keys, _ = qkv.chunk(3, dim=-1)
    if is_vit_use_data_parallel():
        return queries, keys
    return tensor_model_parallel_all_gather(queries.contiguous()), tensor_model_parallel_all_gather(keys.contiguous())
