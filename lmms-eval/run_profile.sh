#!/usr/bin/env bash
# The efficiency table: LLaVA-OneVision-7B on Video-MME in lmms-eval, unpruned, and Tango at 0.1, 0.15 and 0.2.
#   bash run_profile.sh [--dry-run] [further arguments of lmms_eval, such as --limit 100]
# NPROC: processes, by default one a GPU. MODEL: another checkpoint, a folder or a hub id. FRAMES: of each video, 32.
# TASK: another task, with --include_path if it needs one. OUTPUT: another folder. RATIOS: others than these three.
# Started again it skips what is finished, and goes on in the middle of what is not.
set -euo pipefail
cd "$(dirname "$0")"
dry=false
if [ "${1:-}" = --dry-run ]; then dry=true; shift; fi
python=../.venv/bin/python
if [ ! -x $python ]; then python=python; fi
python=${PYTHON:-$python}
model=${MODEL:-lmms-lab/llava-onevision-qwen2-7b-ov}
task=${TASK:-videomme}
output=${OUTPUT:-logs/profile}
config=${TANGO_CONFIG:-../configs/llava_onevision.yaml}
unset TANGO_ARGS TANGO_CONFIG

needs=(--model "$model" --pooling-head)
if [ "$task" = videomme ]; then needs+=(--dataset "lmms-eval/Video-MME=videomme/*.parquet"); fi
if [ ! -f "$config" ]; then echo "missing: $config" >&2; exit 2; fi
if $dry; then processes=${NPROC:-1}; else processes=$("$python" -m tango.evaluation.preflight "${needs[@]}"); fi

launch=("$python")
if [ "$processes" -gt 1 ]; then launch+=(-m torch.distributed.run --standalone "--nproc-per-node=$processes"); fi
failed=()
run() {  # name, variables
    local folder="$output/$1" words
    words=("${launch[@]}" -m lmms_eval --model llava_onevision
        --model_args "pretrained=$model,conv_template=qwen_1_5,model_name=llava_qwen,max_frames_num=${FRAMES:-32}"
        --tasks "$task" --batch_size 1 --log_samples --log_samples_suffix "$1" --output_path "$folder" "${@:3}")
    if $dry; then echo "$2 ${words[*]@Q}"; return; fi
    if [ -f "$folder/finished" ]; then echo "$1 is finished: $folder"; return; fi
    if env $2 "${words[@]}"; then touch "$folder/finished"; else failed+=("$1"); fi
}
run vanilla WRAPPER=vanilla "$@"
for ratio in ${RATIOS:-0.1 0.15 0.2}; do
    run "tango-$ratio" "WRAPPER=tango TANGO_CONFIG=$config TANGO_ARGS=retention_ratio=$ratio" "$@"
done
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}" >&2; exit 1; fi
