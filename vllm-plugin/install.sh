#!/usr/bin/env bash
# install.sh ENVIRONMENT: vLLM for CPUs, Tango and its plugin, in a virtual environment of their own (3.5 GB, minutes).
set -euo pipefail
environment=$1
here=$(cd "$(dirname "$0")" && pwd)
pip() { "$environment/bin/python" -m pip --disable-pip-version-check "$@"; }

[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
# PyTorch for CPUs is not on PyPI: from where pip is told to look, else from PyTorch's own index.
pip install --quiet torch==2.13.0+cpu 2>/dev/null ||
  pip install --quiet --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu torchvision==0.28.0+cpu
pip install --quiet torchvision==0.28.0+cpu --no-deps 2>/dev/null || true
pip install --quiet -r "$here/requirements.txt"
# Both are built for CUDA and cannot be imported here; nothing needs them, and vLLM and transformers do without.
pip uninstall --quiet --yes torchaudio torchcodec
if ! "$environment/bin/python" -c "import torchvision" 2>/dev/null; then
  site=$("$environment/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  cp "$here/torchvision_operators.py" "$site"
  echo "import torchvision_operators" >"$site/torchvision_operators.pth"
fi
# Without dependencies: those of tango-vlm are in requirements.txt, where they fit vLLM's.
pip install --quiet --no-deps -e "$here/.." -e "$here"
"$environment/bin/python" -c "import tango_vllm, torchvision, transformers, vllm; tango_vllm.check_version()"
