"""Writes docs/coverage.md from what coverage.py measured; run by `make coverage`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path


def main() -> int:
    measured, command = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2]
    statements: Counter[str] = Counter()
    missed: dict[str, Counter[str]] = {}
    for name, file in measured["files"].items():
        parts = Path(name).parts[1:]  # without tango/
        room = f"{parts[0]}/" if len(parts) > 1 else parts[0]
        statements[room] += file["summary"]["num_statements"]
        missed.setdefault(room, Counter())["/".join(parts[1:]) or parts[0]] += file["summary"]["missing_lines"]
    print(
        "# Coverage\n\n"
        "Which statements of `tango/` are run by the tests, on a machine without a GPU, also in the commands that\n"
        f"tests start. Measured by `{command}` on {measured['meta']['timestamp'][:10]}; nothing fails if it changes.\n"
        "A statement that is run need not be checked.\n\n"
        "| Part | Statements | Not run | Run | Most of what is not run |\n|---|---:|---:|---:|---|"
    )
    for room in [*sorted(statements), "all"]:
        count = statements.total() if room == "all" else statements[room]
        if count == 0:
            continue
        files = Counter() if room == "all" else missed[room]
        gone = sum(one.total() for one in missed.values()) if room == "all" else files.total()
        most = ", ".join(f"{name} ({lines})" for name, lines in files.most_common(3) if lines)
        print(f"| {room} | {count} | {gone} | {1 - gone / count:.1%} | {most} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
