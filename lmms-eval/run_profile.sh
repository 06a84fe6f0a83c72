#!/usr/bin/env bash
# The efficiency table: LLaVA-OneVision-7B on Video-MME in lmms-eval, unpruned and with Tango, as configs/sweeps/profile.yaml
# says; flags and variables are those of scripts/sweep.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/sweep.sh"
sweep profile "$@"
