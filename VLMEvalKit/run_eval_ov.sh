#!/usr/bin/env bash
# LLaVA-OneVision-7B on the paper's benchmarks, as configs/sweeps/llava_onevision.yaml says;
# flags and variables are those of scripts/sweep.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/sweep.sh"
sweep llava_onevision "$@"
