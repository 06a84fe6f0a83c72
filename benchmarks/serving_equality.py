"""How often an engine of vLLM and transformers agree, by method and retention ratio: kept tokens and greedy answers.

    build/vllm/bin/python benchmarks/serving_equality.py --output results/serving

Both run here, one after the other, on the same frames of MotionQA's videos, in fp32 on a CPU, with tango-tiny.
"""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "serving"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="all that are served")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.2])
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--output", type=Path, help="a folder for equality.json and equality.md")
    asked = parser.parse_args()
    if find_spec("vllm") is None:
        sys.exit(
            "vLLM is not installed here, so nothing was compared: make vllm, then build/vllm/bin/python " + __file__
        )
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    import tango_vllm
    import torch
    from engines import MODEL, OURS, Reference, ask, kept, opened, questions, request, set_method

    from tango.pruners import REGISTRY

    torch.set_num_threads(1)
    tango_vllm.register()
    methods = asked.methods or sorted({*REGISTRY} - {"random", "fastv", "earlytom"})
    reference, found, rows = Reference(MODEL), questions(asked.questions), []
    with opened(MODEL, OURS) as llm:
        for method in methods:
            for ratio in asked.ratios:
                pruner = set_method(llm, REGISTRY[method](retention_ratio=ratio, keep_positions=False))
                answers, videos = 0, []
                for text, clip in found:
                    expected, (indices,) = reference.answer(pruner, text, [clip])
                    with kept() as pruned:
                        ((answer,),) = ask(llm, [request(text, [clip])])
                    answers += answer == expected
                    videos += [one.indices.tolist() == indices for one in pruned]  # none, where a cache has the video
                rows.append({"method": method, "ratio": ratio, "tokens": len(indices), "answers": answers,
                             "questions": len(found), "same_tokens": sum(videos), "videos": len(videos)})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
        (asked.output / "equality.json").write_text(json.dumps(rows, indent=1) + "\n")
        lines = [
            f"Made by: python benchmarks/serving_equality.py --questions {asked.questions}; "
            "vLLM 0.32.0 against transformers: tango-tiny, MotionQA, fp32, CPU.",
            "",
            "| Method | Retention ratio | Video tokens | Answers the same | Videos with the same kept tokens |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in rows:
            same = f"{row['answers']} of {row['questions']} | {row['same_tokens']} of {row['videos']}"
            lines.append(f"| {row['method']} | {row['ratio']:g} | {row['tokens']} of 512 | {same} |")
        (asked.output / "equality.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
