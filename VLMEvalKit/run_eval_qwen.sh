#!/usr/bin/env bash
# Qwen2.5-VL-7B on the paper's benchmarks, as configs/sweeps/qwen2_5_vl.yaml says;
# flags and variables are those of scripts/sweep.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/sweep.sh"
sweep qwen2_5_vl "$@"
