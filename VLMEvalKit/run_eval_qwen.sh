#!/usr/bin/env bash
# Qwen2.5-VL-7B on the paper's benchmarks; flags and variables are those of run_eval.sh.
source "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh"
sweep Qwen/Qwen2.5-VL-7B-Instruct qwen2_5_vl --frames 64 "$@"
