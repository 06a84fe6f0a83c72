"""A plain, dense Tango to hold the fast one against, written from the paper's steps alone and sharing no code with it.

Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547. It takes all
n x n distances at once and loops where a loop reads best. Distances come from differences, in fp32 or fp64, or from
one fp32 matrix product, which is the usual fast dense way and what benchmarks/ compares with.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Oracle:
    retention_ratio: float = 0.1
    context_ratio: float = 0.4
    similarity_threshold: float | None = None
    static_threshold: float = 0.8
    expansion: float = 1.5
    num_neighbors: int = 7
    anchor_weight: float = 0.6
    time_base: float = 10000.0
    space_base: float = 1000.0
    segmentation: str = "holitom"
    selection: str = "diversity"
    merging: str = "st_rope"
    placement: str = "anchor"
    sink_tokens: tuple[int, ...] = ()
    distance: str = "difference"  # or "difference64", "product"

    def prune(self, features, saliency, grid, timestamps, segment_features=None):
        """(indices, fp32 features, segment sizes) of a video: features (F, L, D), saliency (F, L), timestamps (F,)."""
        x = features.float()
        frames, count, dim = x.shape
        saliency = saliency.float().clone()
        saliency[:, list(self.sink_tokens)] = 0
        r, tau = self.retention_ratio, self.similarity_threshold
        if r == 1:
            return torch.arange(frames * count), x.reshape(-1, dim), [frames]
        if tau is None:
            tau = 0.65 if r <= 0.1 else 0.8
        vectors = self.rotate(x, grid, torch.as_tensor(timestamps).float())
        to_merge = vectors if self.merging == "st_rope" else torch.nn.functional.normalize(x, dim=-1)
        similar = torch.cosine_similarity(x[:-1], x[1:], dim=-1, eps=1e-30).clamp(-1, 1)
        if self.segmentation == "holitom":
            sizes = self.holitom(similar, tau)
        elif self.segmentation == "none":
            sizes = [frames]
        else:
            sizes = self.fastvid(x.mean(1) if segment_features is None else segment_features.float(), tau)

        index = torch.arange(frames * count).view(frames, count)
        kept, values, start = [], [], 0
        for size in sizes:
            part = slice(start, start + size)
            pieces = self.segment(
                x[part], vectors[part], to_merge[part], saliency[part], similar[start : start + size - 1], index[part]
            )
            for places, features_of in pieces:
                kept.append(places)
                values.append(features_of)
            start += size
        kept, order = torch.cat(kept).sort()
        return kept, torch.cat(values)[order], sizes

    # Step 1: ST-RoPE.
    def rotate(self, x, grid, timestamps):
        frames, count, dim = x.shape
        norm = x.norm(dim=-1, keepdim=True)
        x = torch.where(norm > 0, x / norm, x)
        b = 2 * math.floor(math.floor(dim / 3) / 2)
        rows = torch.arange(grid[0]).repeat_interleave(grid[1]).float()
        columns = torch.arange(grid[1]).repeat(grid[0]).float()
        sections = [
            (dim - 2 * b, self.time_base, timestamps[:, None].expand(frames, count)),
            (b, self.space_base, rows.expand(frames, count)),
            (b, self.space_base, columns.expand(frames, count)),
        ]
        out, start = [], 0
        for width, base, position in sections:
            x1, x2 = x[..., start : start + width // 2], x[..., start + width // 2 : start + width]
            frequency = 1 / base ** (2 * torch.arange(width // 2, dtype=torch.float32) / max(width, 1))
            angle = position[..., None] * frequency
            out += [x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin()]
            start += width
        return torch.cat(out, dim=-1)

    # Step 2: segmentation.
    def holitom(self, similar, tau):
        frames = similar.shape[0] + 1
        best, last_size = [0], [0]
        for i in range(frames):
            best.append(best[i])
            last_size.append(1)
            same = torch.ones(similar.shape[1], dtype=torch.bool)
            for size in range(2, i + 2):
                a = i - size + 1
                same = same & (similar[a] > tau)
                total = best[a] + int(same.sum()) * (i - a)
                if total > best[i + 1]:
                    best[i + 1], last_size[i + 1] = total, size
        sizes, end = [], frames
        while end > 0:
            sizes.insert(0, last_size[end])
            end -= last_size[end]
        return sizes

    def fastvid(self, frame_vectors, tau):
        similar = (
            torch.cosine_similarity(frame_vectors[:-1], frame_vectors[1:], dim=-1, eps=1e-30).clamp(-1, 1).tolist()
        )
        smallest = sorted(range(len(similar)), key=lambda f: (similar[f], f))[:7]
        cuts = [f for f in range(len(similar)) if f in smallest or similar[f] < tau]
        edges = [0, *(f + 1 for f in cuts), len(frame_vectors)]
        return [b - a for a, b in itertools.pairwise(edges)]

    # Step 3: one segment.
    def segment(self, x, vectors, to_merge, saliency, similar, index):
        frames, count, dim = x.shape
        r = self.retention_ratio
        if frames == 1:
            return self.compress(x[0], vectors[0], to_merge[0], saliency[0], index[0], r)
        static = (similar > self.static_threshold).all(0)
        s, u = int(static.sum()), int((~static).sum())
        r = min(1, r / ((frames * count - (frames - 1) * s) / (frames * count)))
        mean, scores = x[:, static].mean(0), saliency[:, static].mean(0)
        pieces = self.compress(mean, vectors[0, static], to_merge[0, static], scores, index[0, static], r)
        budget = math.ceil(u * r)
        a = int(budget * (1 - self.context_ratio))
        c = budget - a
        pool = []
        for f in range(frames):
            places = (~static).nonzero()[:, 0]
            chosen = self.select(vectors[f, places], saliency[f, places], a)
            pieces.append((index[f, places[chosen]], x[f, places[chosen]]))
            left = torch.ones(u, dtype=torch.bool)
            left[chosen] = False
            pool.append(f * count + places[left])
        pool = torch.cat(pool)
        flat = x.reshape(-1, dim)[pool]
        pieces.append(self.merge(flat, to_merge.reshape(-1, dim)[pool], index.flatten()[pool], frames * c))
        return pieces

    # Step 4: compress a set of tokens.
    def compress(self, x, vectors, to_merge, saliency, index, q):
        n = len(x)
        budget = max(1, math.ceil(n * q)) if n else 0
        a = int(budget * (1 - self.context_ratio))
        chosen = self.select(vectors, saliency, a)
        left = torch.ones(n, dtype=torch.bool)
        left[chosen] = False
        return [(index[chosen], x[chosen]), self.merge(x[left], to_merge[left], index[left], budget - a)]

    # Step 5: diversity-driven salient selection.
    def select(self, vectors, saliency, a):
        n = len(vectors)
        count = a if self.selection == "topk" else min(int(self.expansion * a), n)
        pool = saliency.sort(descending=True, stable=True).indices[:count].sort().values
        if len(pool) <= a:
            return pool
        if a == 0:
            return pool[:0]
        d = self.distances(vectors[pool])
        cluster = self.join(d, self.peaks(d, a))
        chosen = []
        for centre in cluster.unique():
            members = pool[cluster == centre]
            chosen.append(members[saliency[members].argmax()])
        return torch.stack(chosen).sort().values

    # Step 6: spatio-temporal merging.
    def merge(self, x, vectors, index, c):
        if len(x) <= c:
            return index, x
        if c == 0:
            return index[:0], x[:0]
        d = self.distances(vectors)
        by_score = self.peaks(d, c)
        cluster = self.join(d, by_score)
        anchors = by_score.sort().values
        # Sum by a product with the 0/1 matrix of memberships, a slice of it at a time.
        sums = torch.zeros(c, x.shape[1])
        for start in range(0, len(x), 4096):
            part = slice(start, start + 4096)
            sums += (anchors[:, None] == cluster[None, part]).float() @ x[part]
        sizes = (anchors[:, None] == cluster).sum(1)[:, None]
        w = (1 / sizes.double()).clamp(min=self.anchor_weight).float()
        merged = w * x[anchors] + (1 - w) * (sums / sizes)
        if self.placement == "published":
            merged = self.published(by_score, merged)
        return index[anchors], merged

    @staticmethod
    def published(by_score, merged):
        """The published code writes the j-th merged token by place at the j-th anchor by score."""
        at = {int(anchor): merged[j] for j, anchor in enumerate(by_score)}
        return torch.stack([at[anchor] for anchor in sorted(at)])

    # Step 7: density peaks.
    def distances(self, x: Tensor) -> Tensor:
        if self.distance != "product":
            x = x.double() if self.distance == "difference64" else x
            return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        squares = x.square().sum(1)
        return (squares[:, None] + squares - 2 * (x @ x.T)).clamp_(min=0).sqrt_().fill_diagonal_(0)

    def peaks(self, d, m):
        n = len(d)
        if n == 1:
            return torch.zeros(1, dtype=torch.int64)
        near = d.topk(min(self.num_neighbors + 1, n), dim=1, largest=False, sorted=True).values[:, 1:]
        rho = torch.exp(-near.double().square().mean(1))
        order = rho.sort(descending=True, stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(n)
        delta = torch.where(rank[None] < rank[:, None], d, torch.inf).amin(1)
        delta[order[0]] = d.max()
        return (rho * delta.double()).sort(descending=True, stable=True).indices[:m]

    def join(self, d, centres):
        """The centre each point belongs to: the nearest, the lower index among equals, and a centre to itself."""
        centres = centres.sort().values
        cluster = centres[d[:, centres].argmin(1)]
        cluster[centres] = centres
        return cluster
