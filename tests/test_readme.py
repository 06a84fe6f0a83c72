"""The README's Python runs as written, from the repository's root."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_python_example():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = re.search(r"(\d+) -> (\d+) video tokens", done.stdout).groups()
    assert int(before) == 512 and 51 <= int(after) <= 75
