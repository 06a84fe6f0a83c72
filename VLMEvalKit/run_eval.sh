# What run_eval_{ov,video,qwen}.sh share; they source it. A model on Video-MME (without subtitles), MVBench, LongVideoBench and
# MLVU: unpruned, and Tango at 0.1, 0.15 and 0.2.
#   bash run_eval_ov.sh [--dry-run] [--ratios 0.1] [--benchmarks Video-MME] [--limit 100] ..
# NPROC: processes, by default one a GPU. PYTHON: by default .venv of this repository, else python. MODEL: another
# checkpoint, a folder or a hub id. OUTPUT: another folder. Started again, it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

sweep() {  # checkpoint, name of its settings and output, flags
    local python=../.venv/bin/python
    if [ ! -x $python ]; then python=python; fi
    exec "${PYTHON:-$python}" -m tango_vlmeval.benchmarks --model "${MODEL:-$1}" --config "../configs/$2.yaml" \
        --output "${OUTPUT:-outputs/$2}" "${@:3}"
}
