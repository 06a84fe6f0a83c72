#!/usr/bin/env bash
# LLaVA-Video-7B, with pruning inside the language model, on the paper's benchmarks, as configs/sweeps/llava_video.yaml says;
# flags and variables are those of scripts/sweep.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/sweep.sh"
sweep llava_video "$@"
