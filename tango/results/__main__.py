"""`python -m tango.results FOLDER.. --output DIR` is `tango results`."""

import sys

from tango.cli import main

if __name__ == "__main__":
    sys.exit(main(["results", *sys.argv[1:]]))
