#!/usr/bin/env bash
# Qwen2.5-VL-7B on the paper's benchmarks: VLMEvalKit/run_eval_qwen.sh, from the repository's root.
exec bash "$(dirname "${BASH_SOURCE[0]}")/VLMEvalKit/run_eval_qwen.sh" "$@"
