#!/usr/bin/env bash
# The efficiency table: lmms-eval/run_profile.sh, from the repository's root.
exec bash "$(dirname "${BASH_SOURCE[0]}")/lmms-eval/run_profile.sh" "$@"
