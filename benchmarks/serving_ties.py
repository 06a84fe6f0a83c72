"""Why an engine of vLLM and transformers may keep other tokens of a video: how near HoliTom's decisions are to a tie.

    build/vllm/bin/python benchmarks/serving_ties.py --output results/serving

Both vision towers run here on the same frames, in fp32 on a CPU. Of a window's static tokens those of highest score
stay; the gap of that decision is how much higher, as a share, the last one's score is than that of the next. The same
tower in fp64, and scores by their definition in fp64, tell how large it is without rounding.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "serving"))


def scores_of(features, rows, neighbours):
    """Scores (S,) fp64 of static tokens: features (F * L, D) fp64, rows (N, S) of a window of N frames."""
    import torch

    points = features[rows].mean(0) / features.shape[1] ** 0.5
    lengths = (points[:, None] - points).norm(dim=-1)
    density = lengths.sort(dim=1).values[:, :neighbours].square().mean(1).neg().exp()
    denser = density[:, None] < density
    return density * torch.where(denser, lengths, torch.inf).amin(1)


def gap_at(scores, peaks):
    """How much higher the lowest score of the peaks is than the highest of the others, as a share; below 0: lower."""
    import torch

    chosen = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, peaks, True)
    return float(1 - scores[~chosen].max() / scores[chosen].min())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--shown", type=int, default=6, help="decisions to list, those of the smallest gaps")
    parser.add_argument("--output", type=Path, help="a folder for ties.md")
    asked = parser.parse_args()
    if find_spec("vllm") is None:
        sys.exit(f"vLLM is not installed here: make vllm, then build/vllm/bin/python {__file__}")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    import tango_vllm
    import torch
    from engines import MODEL, OURS, Reference, ask, opened, questions, request, set_method

    from tango.ops.density import density_peaks
    from tango.pruners import HoliTom

    torch.set_num_threads(1)
    tango_vllm.register()
    calls, static = [], HoliTom._static

    def noting(self, table, rows, ratio, choose):
        """As it is; noted are what it is given, and of each decision the peaks and all scores."""

        def peaks(points, count, neighbours, indices):
            found = density_peaks(points, points.shape[1], neighbours, itself=True)
            scores = torch.empty(points.shape[1], dtype=torch.float64).scatter_(0, found.indices[0], found.scores[0])
            calls[-1].append((rows, neighbours, found.indices[0, :count], scores))
            return choose(points, count, neighbours, indices)

        return static(self, table, rows, ratio, peaks)

    prune = HoliTom._prune

    def opening(self, video):
        calls.append([])
        tables.append(video.features.flatten(0, 1))
        return prune(self, video)

    HoliTom._static, HoliTom._prune, tables = noting, opening, []
    reference, exact, found = Reference(MODEL), Reference(MODEL, "float64"), questions(asked.questions)
    rows, videos, apart, moved = [], 0, 0.0, 0.0
    with opened(MODEL, OURS) as llm:
        pruner = set_method(llm, HoliTom(retention_ratio=asked.ratio))
        for number, (text, clip) in enumerate(found):
            calls.clear(), tables.clear()
            ask(llm, [request(text, [clip])], 1)
            if not calls:
                continue  # a cache has the video
            reference.answer(pruner, text, [clip], tokens=1)
            exact.answer(pruner, text, [clip], tokens=1)
            (ours, theirs, _), (own, other, true) = calls, tables
            videos += 1
            apart = max(apart, float(((own - other).norm(dim=1) / other.norm(dim=1)).max()))
            for (where, near, peaks, scores), (same_where, _, chosen, wanted) in zip(ours, theirs, strict=True):
                if not torch.equal(where, same_where):
                    raise SystemExit(f"video {number}: windows or static tokens differ, not only peaks")
                if len(peaks) == len(scores):
                    continue
                finite = wanted.isfinite() & scores.isfinite() & (wanted > 0)
                moved = max(moved, float((scores / wanted - 1)[finite].abs().max()))
                same = {*peaks.tolist()} == {*chosen.tolist()}
                gaps = [
                    gap_at(wanted, chosen),
                    gap_at(scores, peaks),
                    gap_at(scores_of(true.double(), where, near), chosen),
                ]
                rows.append((number, len(scores), len(peaks), *gaps, "yes" if same else "no"))
    rows.sort(key=lambda row: abs(row[5]))
    lines = [
        f"Made by: python benchmarks/serving_ties.py --ratio {asked.ratio:g} --questions {asked.questions}; "
        "vLLM 0.32.0 and transformers: tango-tiny, MotionQA, fp32, CPU; HoliTom.",
        "",
        f"{videos} videos. The tokens of the two towers differ by up to {apart:.1e} of their length, the scores of "
        f"static tokens by up to {moved:.1e}. Of {len(rows)} decisions about the peaks of a window "
        f"{sum(row[-1] == 'yes' for row in rows)} are the same. Those of the smallest gaps:",
        "",
        "| Question | Static tokens | Peaks | Gap in transformers | Gap in vLLM | Gap of transformers' peaks in fp64 "
        "| The same |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for number, size, count, *gaps, same in rows[: asked.shown]:
        lines.append(f"| {number} | {size} | {count} | {' | '.join(f'{gap:.1e}' for gap in gaps)} | {same} |")
    print("\n".join(lines))
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
        (asked.output / "ties.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
