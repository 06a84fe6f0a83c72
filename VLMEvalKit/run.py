"""VLMEvalKit's run.py with pruned models and MotionQA; see tango_vlmeval/command.py."""

import sys

from tango_vlmeval.command import main

if __name__ == "__main__":
    sys.exit(main())
