"""What the patches of a frame receive of each other's attention, in a vision layer of any family."""

import torch
from torch import Tensor

from tango.pruners.base import full_precision

BLOCK_BYTES = 256 << 20  # of softmax weights at once, never a whole frame's map if that is larger


def received_attention(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """The attention (P,) that each patch of one frame receives: softmax weights, mean over heads and over queries.

    The saliency of VisionZip for towers without a class token (arXiv 2412.04467), HoliTom (arXiv 2505.21334) and
    FlashVID (arXiv 2602.08024). In fp32 whatever the dtype of the inputs.

    Args:
        queries, keys: (heads, P, d), rotated where the layer does so.
        scaling: factor of the inner products.
    """
    heads, patches, _ = queries.shape
    received = torch.zeros(patches, device=queries.device)
    with full_precision(queries.device):
        keys = keys.float().mT
        for part in torch.split(queries, max(1, BLOCK_BYTES // (4 * heads * patches)), dim=1):
            received += (part.float() @ keys * scaling).softmax(-1).sum((0, 1))
    return received / (heads * patches)
