# What VLMEvalKit/run_eval_{ov,video,qwen}.sh and lmms-eval/run_profile.sh share; they source it. A sweep in configs/sweeps/:
#   bash run_eval_ov.sh [--dry-run] [--limit 100] [--benchmark Video-MME] [--ratio 0.1] [--ray auto --gpus 2] ..
# Flags are those of `tango sweep` and win over the file; paths among them are relative to the repository's root. NPROC:
# processes, by default one a GPU. PYTHON: by default .venv of this repository, else python. MODEL, OUTPUT, FRAMES: another
# checkpoint (a folder or a hub id), folder of results and number of frames. Started again, it goes on where it was.
set -euo pipefail

sweep() {  # name of the file, flags
    local model=${MODEL:-} output=${OUTPUT:-} python=.venv/bin/python
    if [ -d "$model" ]; then model=$(realpath "$model"); fi
    if [ -n "$output" ]; then output=$(realpath -m "$output"); fi
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    if [ ! -x $python ]; then python=python; fi
    exec "${PYTHON:-$python}" -m tango.cli sweep "configs/sweeps/$1.yaml" ${model:+--model "$model"} \
        ${output:+--output "$output"} ${FRAMES:+--frames "$FRAMES"} "${@:2}"
}
