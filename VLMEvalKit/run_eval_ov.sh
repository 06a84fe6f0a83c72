#!/usr/bin/env bash
# LLaVA-OneVision-7B on the paper's benchmarks; flags and variables are those of run_eval.sh.
source "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh"
sweep lmms-lab/llava-onevision-qwen2-7b-ov llava_onevision --frames 32 --pooling-head "$@"
