#!/usr/bin/env bash
# LLaVA-OneVision-7B on Video-MME (without subtitles), MVBench, LongVideoBench and MLVU:
# unpruned, and Tango at 0.1, 0.15 and 0.2.
#   bash run_eval_ov.sh [--dry-run] [--ratios 0.1] [--benchmarks Video-MME] [--limit 100] ..
# NPROC: processes, by default one a GPU. PYTHON: by default .venv of this repository, else python. MODEL: another checkpoint, a folder or a hub id. OUTPUT: another folder.
# Started again it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")"
python=../.venv/bin/python
if [ ! -x $python ]; then python=python; fi
exec "${PYTHON:-$python}" -m tango_vlmeval.benchmarks --model "${MODEL:-lmms-lab/llava-onevision-qwen2-7b-ov}" \
    --frames 32 --pooling-head --config ../configs/llava_onevision.yaml --output "${OUTPUT:-outputs/llava_onevision}" "$@"
