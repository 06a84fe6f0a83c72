#!/usr/bin/env bash
# LLaVA-Video-7B, with pruning inside the language model, on the paper's benchmarks; flags and variables are those of run_eval.sh.
source "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh"
sweep lmms-lab/LLaVA-Video-7B-Qwen2 llava_video --frames 64 --pooling-head "$@"
