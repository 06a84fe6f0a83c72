#!/usr/bin/env bash
# LLaVA-OneVision-7B on the paper's benchmarks: VLMEvalKit/run_eval_ov.sh, from the repository's root.
exec bash "$(dirname "${BASH_SOURCE[0]}")/VLMEvalKit/run_eval_ov.sh" "$@"
