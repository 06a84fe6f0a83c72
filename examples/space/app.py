"""The app as a Space: what `tango app` serves, at the port that Spaces show.

python examples/space/app.py

MODEL names another model, a hub id or a folder; a Space's settings have it as a variable.
"""

import os
import sys

from tango.cli import main

MODEL = os.environ.get("MODEL", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
PORT = os.environ.get("PORT", "7860")

LIMITS = ["--max-megabytes", "50", "--max-seconds", "120"]

sys.exit(main(["app", "--model", MODEL, "--host", "0.0.0.0", "--port", PORT, *LIMITS]))
