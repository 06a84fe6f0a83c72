"""FastVID's segmentation (arXiv 2503.11187), also FlashVID's, an option of Tango's: neighbouring frames that differ."""

import torch
from torch import Tensor

from tango.ops.segmentation import neighbour_similarity

CUTS = 7  # at the seven least similar places at least


def fastvid(frame_vectors: Tensor, threshold: float, cuts: int = CUTS) -> Tensor:
    """Cut between neighbouring frames that are among the `cuts` least similar pairs, or less similar than a threshold.

    Args:
        frame_vectors: (F, E) one vector a frame. threshold: pairs with a cosine below it are cut in any case.
        cuts: how many places to cut at least, where there are as many.

    Returns:
        (S,) int64 on the CPU, frames in each segment.
    """
    similarity = neighbour_similarity(frame_vectors[:, None])[:, 0].cpu()
    cut = similarity < threshold
    cut[similarity.sort(stable=True).indices[:cuts]] = True
    ends = torch.cat([cut.nonzero()[:, 0] + 1, torch.tensor([len(frame_vectors)])])
    return torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64))
