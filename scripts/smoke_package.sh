#!/usr/bin/env bash
# Builds sdist and wheel of the four packages and tries the wheels in a fresh environment, away from the checkout: what is
# in them is what works there. Only what they depend on is lent from .venv, since torch alone is gigabytes.
#   bash scripts/smoke_package.sh    (make package; the packages end up in build/package/dist)
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD tools=$PWD/build/tools/bin lender=$PWD/.venv/bin/python work=$PWD/build/package
for needed in "$tools/python" "$lender"; do
    if [ ! -x "$needed" ]; then echo "missing: $needed; make package makes it" >&2; exit 2; fi
done
rm -rf "$work"
mkdir -p "$work/away"

# Each wheel is built from its sdist, so a file that the sdist lacks is missed below.
for folder in . lmms-eval VLMEvalKit vllm-plugin; do
    "$tools/python" -m build --no-isolation --outdir "$work/dist" "$folder" >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
done
ls "$work/dist"

python3=$("$lender" -c 'import sys; print(sys._base_executable)')
"$python3" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$work"/dist/*.whl
# A line of a .pth file is searched after the environment's own packages, and the .pth files of the folder it names are not
# read: the editable installs of the checkout stay out.
"$lender" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"

cp scripts/smoke_package.py "$work/away/"
cd "$work/away"
unset PYTHONPATH
export HF_HUB_OFFLINE=1
../env/bin/tango --help >/dev/null
../env/bin/tango --version
../env/bin/tango methods
../env/bin/tango methods --json >methods.json
../env/bin/python smoke_package.py
# With nothing but what the wheel asks for, then with what its extras bring.
lean() { ../env/bin/python "$root/scripts/lean.py" "$@"; }
lean "" -c 'import tango, tango.models, tango.inference.chat, tango.inference.video; print("lean:", tango.__file__)'
lean cli -m tango.cli methods tango >/dev/null
lean eval -c 'import tango.results, tango.sweeps.sweep, tango.runs.run'
