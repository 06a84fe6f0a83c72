"""`python -m tango.cli` is the command `tango`, for scripts that know a Python and not its folder of commands."""

import sys

from tango.cli import main

if __name__ == "__main__":
    sys.exit(main())
