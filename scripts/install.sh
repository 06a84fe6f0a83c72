#!/usr/bin/env bash
# Installs what requirements*.txt pin, and this checkout, into an environment: with uv where that is installed, else with
# pip. One line says how far it is; the whole output is in FOLDER/install.log.
#   bash scripts/install.sh .venv     (make setup; PYTHON: which Python to make it with)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 python=${PYTHON:-python3} begun=$SECONDS
log=$folder/install.log total=$(grep -hc '==' requirements.txt requirements-vlmeval.txt | awk '{ sum += $1 } END { print sum }')

if command -v uv >/dev/null; then
    # pip too, for who adds packages later.
    uv venv --quiet --allow-existing --seed --python "$python" "$folder"
    install() { uv pip install --python "$folder/bin/python" "$@"; }
else
    "$python" -m venv "$folder"
    install() { "$folder/bin/pip" install --disable-pip-version-check --progress-bar off "$@"; }
fi

# A line on a terminal, written over itself; elsewhere one a hundred packages.
progress() {
    local count=0 first second rest
    while read -r first second rest; do
        case $first in
            Collecting | Processing) count=$((count + 1)) ;;
            Downloaded) ;;
            Installing) second="now put in place, which says nothing for minutes" ;;
            Prepared) count=$((count + second)) second="fetched" ;;  # uv tells how many at once
            *) continue ;;
        esac
        if [ -t 2 ]; then
            printf '\r\033[K  %d of about %d packages, %d s: %s' $count "$total" $((SECONDS - begun)) "$second" >&2
        elif [ $((count % 100)) = 0 ] || [ "$second" = fetched ]; then
            printf '  %d of about %d packages, %d s: %s\n' $count "$total" $((SECONDS - begun)) "$second" >&2
        fi
    done
    if [ -t 2 ]; then echo >&2; fi
}

echo "installing into $folder with $(command -v uv >/dev/null && echo uv || echo pip); torch and its CUDA libraries are 4.5 GB" >&2
{
    install -r requirements.txt &&
        install --no-deps -r requirements-vlmeval.txt &&
        install --no-deps -e . -e ./lmms-eval -e ./VLMEvalKit
} 2>&1 | tee "$log" | progress || { tail -n 20 "$log" >&2; echo "failed; all that was said is in $log" >&2; exit 1; }

# What of ms-vlmeval's requirements is left out is so by intent, as is the antlr4 of its and lmms-eval's that disagree;
# anything else would be a fault.
check=$("$folder/bin/python" -m pip check 2>&1 || true)
intended='^ms-vlmeval |^latex2sympy2 .*antlr4|^No broken'
rest=$(grep -vE "$intended" <<<"$check" || true)
echo "installed in $((SECONDS - begun)) s. pip check names $(grep -cE '^ms-vlmeval|^latex2sympy2' <<<"$check" || true) requirements of" \
    "ms-vlmeval and lmms-eval that are unmet by intent: of tasks that are not run here, or at odds with one another" \
    "(requirements-vlmeval.txt)" >&2
if [ -n "$rest" ]; then printf 'pip check names besides:\n%s\n' "$rest" >&2; fi
