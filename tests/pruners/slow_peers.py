"""FastVID, HoliTom, VisionZip and FlashVID the slow way, for the tests: lists, loops and whole matrices in fp64.

Written from the papers' steps alone (arXiv 2503.11187, 2505.21334, 2412.04467, 2602.08024) and sharing no code with
tango/. Each takes features (F, L, D), saliency (F, L) and the method's settings, and gives lists of flat indices and of
fp64 features, in the method's order.
"""

import math

import torch


def cosines(a, b):
    """Of each row of a with each of b, as lists; 0 with a zero row."""
    a, b = (x / torch.where((n := x.norm(dim=-1, keepdim=True)) > 0, n, 1.0) for x in (a.double(), b.double()))
    return (a @ b.T).tolist()


def neighbours(x):
    """Cosine of each row with the next."""
    return [row[f + 1] for f, row in enumerate(cosines(x, x)[:-1])]


def first_best(values):
    """Place of the largest; the first of those that are equal but for rounding."""
    best = max(values)
    return next(place for place, value in enumerate(values) if value >= best - 1e-9)


def top(scores, count):
    """Places of the largest, ascending; the lower place among equals."""
    return sorted(sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place))[:count])


def distances(x):
    x = x.double() / x.shape[1] ** 0.5
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()


def peaks(x, neighbours, count, strict=False, penalties=None):
    """Density peaks on raw features, distance / sqrt(D), a point among its own neighbours; by falling score."""
    penalties = penalties or [0.0] * len(x)
    d = distances(x)
    n = len(d)
    rho = []
    for row in d:
        near = sorted(row)[: min(neighbours, n)]
        rho.append(math.exp(-sum(value**2 for value in near) / len(near)))
    longest = max(map(max, d))
    scores = []
    for i in range(n):
        denser = [d[i][j] for j in range(n) if rho[j] > rho[i] or (not strict and rho[j] == rho[i] and j < i)]
        scores.append(rho[i] * min(denser, default=longest) - penalties[i])
    order = []
    left = list(range(n))
    while len(order) < count:
        order.append(left.pop(first_best([scores[i] for i in left])))
    return order


def nearest(x, centres):
    """For each row the place among the ascending centres of the nearest one; a centre is its own."""
    d = distances(x)
    return [
        centres.index(i) if i in centres else first_best([-d[i][centre] for centre in centres]) for i in range(len(x))
    ]


def fastvid(x, saliency, vectors, r, min_segments=8, tau=0.9, share=0.4, interval=4, beta=0.6, sinks=None, twice=2):
    frames, tokens, _ = x.shape
    x = x.double()
    alike = neighbours(vectors)
    smallest = sorted(range(frames - 1), key=lambda f: (alike[f], f))[: min_segments - 1]
    ends = [f + 1 for f in range(frames) if f == frames - 1 or f in smallest or alike[f] < tau]
    budget = max(1, int(tokens * r))
    context = int(budget * share)
    kept = {}
    others = []
    for f in range(frames):
        chosen = top(saliency[f], budget - context)
        kept |= {f * tokens + place: x[f, place] for place in chosen}
        others.append([place for place in range(tokens) if place not in chosen])
    start = 0
    for end in ends:
        n = end - start
        anchor_frames = [start + j for j in range(n) if (n - 1 - j) % interval == 0]
        wanted = context * n // len(anchor_frames)
        for f in anchor_frames if wanted else []:
            own = others[f]
            if not own:
                continue
            lower = sinks and [(twice if wanted > context else 1) * sinks[place] for place in own]
            chosen = sorted(peaks(x[f, own], 4, min(wanted, len(own)), penalties=lower))
            anchors = x[f, [own[place] for place in chosen]]
            pool = [f] if wanted == context else range(start, end)
            joined = [[] for _ in anchors]
            for g in pool:
                for place, alike in zip(others[g], cosines(x[g, others[g]], anchors), strict=True):
                    joined[first_best(alike)].append(x[g, place])
            for place, anchor, group in zip(chosen, anchors, joined, strict=True):
                w = max(1 / (len(group) + 1), beta)
                merged = w * anchor + (1 - w) * torch.stack(group).mean(0) if group else anchor
                kept[f * tokens + own[place]] = merged
        start = end
    indices = sorted(kept)
    return indices, [kept[index] for index in indices], [b - a for a, b in zip([0, *ends], ends, strict=False)]


def visionzip(x, saliency, keys, r, share=54 / 64, total=None):
    frames, tokens, _ = x.shape
    x, keys = x.double(), keys.double()
    indices, values = [], []
    for f in range(frames):
        budget = total or math.ceil(tokens * r)
        dominant = top(saliency[f], int(budget * share))
        context = budget - len(dominant)
        others = [place for place in range(tokens) if place not in dominant]
        targets = others[:: max(1, len(others) // context)][:context] if context else []
        groups = {target: [] for target in targets}
        for place in others if targets else []:
            if place not in groups:
                best = first_best(cosines(keys[f, [place]], keys[f, targets])[0])
                groups[targets[best]].append(x[f, place])
        indices += [f * tokens + place for place in (*dominant, *targets)]
        values += [x[f, place] for place in dominant]
        values += [x[f, t] + (torch.stack(group).mean(0) if group else 0) for t, group in groups.items()]
    return indices, values


def holitom_windows(static, longest):
    """Frames of each window: the recurrence over the last frame, strictly better windows only."""
    frames = len(static) + 1
    best, size_of = [0], [0]
    for last in range(frames):
        best.append(best[last])
        size_of.append(1)
        for size in range(2, min(longest, last + 1) + 1):
            first = last - size + 1
            total = best[first] + int(static[first:last].all(0).sum()) * (size - 1)
            if total > best[-1]:
                best[-1], size_of[-1] = total, size
    sizes, end = [], frames
    while end:
        sizes.insert(0, size_of[end])
        end -= size_of[end]
    return sizes


def holitom(x, saliency, r, tau, beta=0.6, k=7, longest=1024, sinks=None, lift=None, static_tau=0.8):
    frames, tokens, _ = x.shape
    x = x.double()
    alike = torch.zeros(frames - 1, tokens, dtype=torch.float64)
    for place in range(tokens):
        alike[:, place] = torch.tensor(neighbours(x[:, place]))
    sizes = holitom_windows(alike > tau, longest)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def static_places(static):
        return [
            [p for p in range(tokens) if n > 1 and static[a : a + n - 1, p].all()]
            for a, n in zip(starts, sizes, strict=True)
        ]

    still = static_places(alike > tau)
    saved = sum(len(s) * (n - 1) for s, n in zip(still, sizes, strict=True))
    raised = min(1.0, r / ((frames * tokens - saved) / (frames * tokens)))
    if lift:
        still = static_places(alike + torch.tensor(lift) > static_tau)
    indices, values = [], []
    for a, n, positions in zip(starts, sizes, still, strict=True):
        count = round(len(positions) * raised)
        if count:
            means = torch.stack([x[a : a + n, p].mean(0) for p in positions])
            lower = sinks and [sinks[p] for p in positions]
            centres = sorted(peaks(means, min(k, count), count, penalties=lower))
            groups = [[] for _ in centres]
            for i, group in enumerate(nearest(means, centres)):
                if i not in centres:
                    groups[group].append(means[i])
            for centre, group in zip(centres, groups, strict=True):
                indices.append(a * tokens + positions[centre])
                own = means[centre]
                values.append(beta * own + (1 - beta) * torch.stack(group).mean(0) if group else own)
        moving = [p for p in range(tokens) if p not in positions]
        for f in range(a, a + n):
            chosen = top(saliency[f, moving], math.ceil(len(moving) * raised))
            indices += [f * tokens + moving[i] for i in chosen]
            values += [x[f, moving[i]] for i in chosen]
    return indices, values, sizes


def flashvid(x, saliency, r, settings):
    s = {"segment_threshold": 0.9, "min_segments": 8, "expansion": 1.25, "alpha": 0.7, "temporal_threshold": 0.8,
         "selection": "v2", "tree_mean": "published"} | settings  # fmt: skip
    frames, tokens, _ = x.shape
    x = x.double()
    alike = neighbours(x.mean(1))
    cuts = {f for f in range(frames - 1) if alike[f] < s["segment_threshold"]}
    for f in sorted(range(frames - 1), key=lambda f: (alike[f], f)):
        if len(cuts) + 1 < s["min_segments"]:
            cuts.add(f)
    ends = [f + 1 for f in range(frames) if f in cuts or f == frames - 1]
    budget = math.ceil(tokens * r * s["expansion"])
    if budget >= tokens:
        return list(range(frames * tokens)), list(x.reshape(frames * tokens, -1)), [frames]
    salient_count = math.ceil(budget * s["alpha"])
    context = budget - salient_count
    rows, start = [], 0
    for end in ends:
        mu = x[start:end].mean((0, 1))
        salient = {f: flashvid_salient(x[f], saliency[f], mu, salient_count, s["selection"]) for f in range(start, end)}
        rows += [(f * tokens + place, 0, x[f, place]) for f in salient for place in salient[f]]
        if context:
            rows += flashvid_context(x, start, end, salient, budget, context, s)
        start = end
    rows.sort(key=lambda row: row[:2])
    return [row[0] for row in rows], [row[2] for row in rows], [b - a for a, b in zip([0, *ends], ends, strict=False)]


def flashvid_salient(x, saliency, mu, count, selection):
    n = len(x)
    weight = [1e6 * float(saliency[j]) * (float(x[j] @ mu) if selection == "v2" else 1) for j in range(n)]
    d = [[0.0 if i == j else 1 - value for j, value in enumerate(row)] for i, row in enumerate(cosines(x, x))]
    d = [[(0.0 if abs(value) < 1e-12 else value) * weight[j] for j, value in enumerate(row)] for row in d]
    picked = []
    while len(picked) < count:
        left = [j for j in range(n) if j not in picked]
        if picked:
            worth = [min(d[i][j] for i in picked) for j in left]
        else:
            worth = [sorted(d[i][j] for i in range(n))[1] for j in left]
        picked.append(left[max(range(len(left)), key=lambda i: (worth[i], -i))])
    return sorted(picked)


def flashvid_context(x, start, end, salient, budget, context, s):
    """The merged rows (index, 1, features) of a segment."""
    tokens, n = x.shape[1], end - start
    parent, q = {}, {}
    for f in range(start, end):
        alike = cosines(x[f], x[f - 1])
        for place in range(tokens):
            q[f, place] = -1.0
            if f > start and place not in salient[f]:
                free = [m for m in range(tokens) if m not in salient[f - 1]]
                values = [alike[place][m] for m in free]
                parent[f, place] = free[first_best(values)]
                q[f, place] = round(max(values), 12)
    absorbed = {key for key in q if n > 1 and q[key] > s["temporal_threshold"]}
    if n > 1 and n * tokens - len(absorbed) < budget * n:
        theta = sorted(q.values(), reverse=True)[n * tokens - budget * n - 1]
        absorbed = {key for key in q if q[key] > max(theta, -1 + 1e-6)}
    value = {key: x[key] for key in q}
    count = dict.fromkeys(q, 1)
    for f in range(end - 1, start - 1, -1):
        for place in range(tokens):
            if (f, place) in absorbed:
                above = f - 1, parent[f, place]
                value[above] = value[above] + value[f, place]
                count[above] += count[f, place] if s["tree_mean"] == "exact" else 1
            else:
                value[f, place] = value[f, place] / count[f, place]
    pools = {f: [p for p in range(tokens) if (f, p) not in absorbed and p not in salient[f]] for f in range(start, end)}
    if n == 1:
        pools = {start: list(range(tokens))}
    rho = context * n / max(1, sum(map(len, pools.values())))
    rows = []
    for f, pool in pools.items():
        centres = math.ceil(len(pool) * rho)
        if rho >= 1 or centres == 0:
            rows += [(f * tokens + place, 1, value[f, place]) for place in pool]
            continue
        own = torch.stack([value[f, place] for place in pool])
        chosen = sorted(peaks(own, min(centres, 7), centres, strict=True))
        groups = [[] for _ in chosen]
        for i, group in enumerate(nearest(own, chosen)):
            groups[group].append(own[i])
        rows += [(f * tokens + pool[i], 1, torch.stack(g).mean(0)) for i, g in zip(chosen, groups, strict=True)]
    return rows
