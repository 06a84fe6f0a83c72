#!/usr/bin/env bash
# Serves tango-tiny, the small model of this repository, with Tango at 0.1, and prints a request to try (make serve).
#   bash vllm-plugin/serve.sh [options of vLLM]; PYTHON, PORT, WRAPPER, TANGO_ARGS and TANGO_CONFIG are variables.
set -euo pipefail
cd "$(dirname "$0")/.."
port=${PORT:-8000}
export WRAPPER=${WRAPPER-tango} VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
if [ "$WRAPPER" = tango ] && [ -z "${TANGO_ARGS-}${TANGO_CONFIG-}" ]; then export TANGO_ARGS=retention_ratio=0.1; fi
cat <<END
The server is ready when it says "Application startup complete", on a CPU in a minute or two. Then, in another shell:

curl -s http://127.0.0.1:$port/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "model": "tango-tiny", "max_tokens": 8, "temperature": 0,
  "messages": [{"role": "user", "content": [
    {"type": "video_url", "video_url": {"url": "file://$PWD/data/motionqa/videos/0.mp4"}},
    {"type": "text", "text": "What colour is the ring?\nA. orange\nB. red\nC. yellow\nD. green\nAnswer with one of the options."}]}]}'

END
exec "${PYTHON:-build/vllm/bin/python}" -m vllm.entrypoints.openai.api_server \
  --model checkpoints/tango-tiny --served-model-name tango-tiny --host 127.0.0.1 --port "$port" \
  --dtype float32 --enforce-eager --max-model-len 4096 --allowed-local-media-path "$PWD" \
  --media-io-kwargs '{"video": {"num_frames": 8, "video_backend": "tango"}}' "$@"
