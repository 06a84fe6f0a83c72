"""What Tango decides on the host, once the segments are known: which sets it works on, and how much of each it keeps.

A set is L places, of which some are its members: the dynamic places of a frame, or the static places of a segment. The
frames come first, in order, and behind them the segments that have static places, so that a set and a place in it make
one number, set * L + place, which for frames is the flat index of a token. What is not selected of a set as salient
goes to a pool: one for all frames of a segment, and one for its static places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tango.merging import Merging
from tango.pruners import trace


@dataclass(frozen=True)
class Plan:
    """F frames and T segments with static places make G = F + T sets of L places; all tensors are on the CPU.

    members: (G, L) bool.
    first: (G,) flat index of the place 0 of each set: of its frame, or of its segment's first frame.
    sizes, salient: members of each set, and how many of them to select as salient (lists of G).
    pools, context: tokens in each pool, and how many to merge them to (lists of S + T, S segments).
    frames: (T,) frames of each segment with static places.
    frame_rows, frame_of: (sum of these frames,) those frames, and which of the T segments each is of.
    rows, mean_of: flat indices of all tokens that are averaged into static ones, and into which.
    mean: (G - F) * L, of each place of these sets, the static token that it is.
    """

    members: Tensor
    first: Tensor
    sizes: list[int]
    salient: list[int]
    pools: list[int]
    context: list[int]
    frames: Tensor
    frame_rows: Tensor
    frame_of: Tensor
    rows: Tensor
    mean_of: Tensor
    mean: Tensor

    @classmethod
    def of(cls, sizes: Tensor, static: Tensor, budgets: Tensor, context_ratio: float) -> Plan:
        """The plan for segments of sizes (S,) frames.

        Args:
            static: (S, L) bool, static places; none in a single frame.
            budgets: (S, 2) tokens to keep of static and of dynamic places.
            context_ratio: share of a budget that goes to merged tokens.
        """
        count, tokens = static.shape
        frames = int(sizes.sum())
        starts = sizes.cumsum(0) - sizes
        segment_of = torch.arange(count).repeat_interleave(sizes)
        still = (static.any(1) & (budgets[:, 0] > 0)).nonzero()[:, 0]
        members = torch.cat([~static[segment_of], static[still]])
        present = members.sum(1)
        # A frame's share, in double precision and rounded down as int() does.
        dynamic = (budgets[:, 1].double() / sizes * (1 - context_ratio)).long()
        of_still = (budgets[still, 0].double() * (1 - context_ratio)).long()
        salient = torch.cat([dynamic[segment_of], of_still]).minimum(present)
        left = present - salient
        pools = torch.cat(
            [torch.zeros(count, dtype=torch.int64).index_add_(0, segment_of, left[:frames]), left[frames:]]
        )
        context = torch.cat([budgets[:, 1] - sizes * dynamic, budgets[still, 0] - of_still])

        own = torch.zeros(count, dtype=torch.int64).index_copy_(0, still, torch.arange(len(still)))
        frame_rows = torch.isin(segment_of, still).nonzero()[:, 0]
        frame_of = own[segment_of[frame_rows]]
        mean = (static[still].flatten().cumsum(0) - 1).clamp(min=0)
        which, place = static[still][frame_of].nonzero(as_tuple=True)
        return cls(
            members,
            torch.cat([torch.arange(frames), starts[still]]) * tokens,
            present.tolist(),
            salient.tolist(),
            pools.tolist(),
            context.tolist(),
            sizes[still],
            frame_rows,
            frame_of,
            frame_rows[which] * tokens + place,
            mean[frame_of[which] * tokens + place],
            mean,
        )

    @property
    def mean_frames(self) -> Tensor:
        """Frames that each static token is the mean of."""
        return self.frames.repeat_interleave(self.members[-len(self.frames) :].sum(1))

    def of_frames(self) -> tuple[int, int, int]:
        """How many of all salient, of all pooled and of all merged tokens are of frames, not of static places."""
        sets, pools = len(self.sizes) - len(self.frames), len(self.pools) - len(self.frames)
        merged = sum(min(pair) for pair in zip(self.pools[:pools], self.context[:pools], strict=True))
        return sum(self.salient[:sets]), sum(self.pools[:pools]), merged


@dataclass(frozen=True)
class Kept:
    """What came of a plan.

    indices, values: (K,) flat indices of the kept tokens and their features (K, D) fp32, in no order.
    selected, rest: salient tokens, and all tokens of the pools, by set * L + place; merging: of the latter.
    """

    indices: Tensor
    values: Tensor
    selected: Tensor
    rest: Tensor
    merging: Merging

    def tell(self, plan: Plan) -> None:
        """Say what became of every token, for traces."""
        tokens, first = plan.members.shape[1], plan.first.to(self.rest.device)
        frames = len(plan.sizes) - len(plan.frames)
        joined = self.merging.clusters < len(self.merging.places)
        source = self.rest[joined]
        target = self.rest[self.merging.places[self.merging.clusters[joined]]]
        for number in range(-1, len(plan.frames)):
            if number < 0:
                of, low, high = None, 0, frames * tokens
            else:
                low = (frames + number) * tokens
                high = low + tokens
                copies = tokens * torch.arange(int(plan.frames[number]), device=first.device)
                places = first[frames + number] + torch.arange(tokens, device=first.device)
                of = places[:, None] + copies
            trace.salient(self.selected[(self.selected >= low) & (self.selected < high)] - low, of)
            mine = (source >= low) & (source < high)
            trace.merged(source[mine] - low, target[mine] - low, of)
