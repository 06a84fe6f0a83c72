#!/usr/bin/env bash
# Everything that is to be known of a GPU, in one command of under nine minutes (five on an H100); needs python3 with torch and transformers only.
#
#     bash benchmarks/gpu.sh [FOLDER]                  # results/performance by default
#     TANGO_GPU_SMALL=1 bash benchmarks/gpu.sh FOLDER  # on a CPU with small shapes, to try the script itself
#
# Correctness comes first, and each script that times checks what it is about to time. Each step writes its own table as soon as
# it has a row, so that one that is cut off, or breaks, costs nothing but itself. Exit status: how many steps failed.
set -u
cd "$(dirname "$0")/.."
out=${1:-results/performance}
mkdir -p "$out"
failed=0

# step SECONDS NAME SCRIPT ARGUMENTS..: one benchmark, cut off after so many seconds; its log is NAME.log.
step() {
  local limit=$1 name=$2 start=$SECONDS
  shift 2
  if timeout "$limit" python3 "benchmarks/$1" "${@:2}" --output "$out/$name.md" >"$out/$name.log" 2>&1; then
    echo "$name: done in $((SECONDS - start)) s"
  else
    local status=$?
    echo "$name: FAILED with status $status (124: cut off) after $((SECONDS - start)) s; the end of $out/$name.log:"
    tail -n 5 "$out/$name.log"
    failed=$((failed + 1))
    return 1
  fi
}

if [ -n "${TANGO_GPU_SMALL:-}" ]; then
  small="--device cpu --toy --repeats 1"
  step 600 correctness correctness.py --device cpu --families llava_onevision internvl
  step 600 pruning_small pruning.py --frames 8 --runs 1 --turns 1
  for family in llava_onevision llava_video qwen2_5_vl; do
    step 600 "ttft_$family" ttft.py --family "$family" $small --frames 4 --new-tokens 3 --tower-reuse pixels
  done
  step 600 vision vision.py $small --frames 2
  step 600 scaling_llava_onevision scaling.py $small --frames 4 --batch 1
  exit "$failed"
fi

step 120 correctness correctness.py
step 90 pruning_cuda pruning.py --device cuda --runs 10
step 120 ttft_llava_onevision ttft.py --family llava_onevision --frames 32 128 --repeats 5 --new-tokens 16 --tower-reuse pixels stc
step 75 ttft_llava_video ttft.py --family llava_video --frames 64 --repeats 5 --new-tokens 16 --tower-reuse pixels
step 75 ttft_qwen2_5_vl ttft.py --family qwen2_5_vl --frames 64 --repeats 5 --new-tokens 16 --tower-reuse pixels
step 60 vision vision.py
step 60 scaling_llava_onevision scaling.py --family llava_onevision --frames 8 32 128 --batch 1 4
exit "$failed"
