"""`python -m tango.results FOLDER.. --output DIR`: tables and plots of what sweeps have finished."""

import argparse
import sys

from rich.console import Console

from tango.results import ResultsError, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tango.results", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a sweep, or of several")
    parser.add_argument("--output", default="results", help="gets a folder for each model (default: %(default)s)")
    args = parser.parse_args()
    try:
        report(args.folders, args.output).show(Console())
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
