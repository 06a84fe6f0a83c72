"""Collected only where transformers' tests were fetched, by `make test-transformers`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))  # the small models

collect_ignore_glob = [] if os.environ.get("TRANSFORMERS_TESTS") else ["test_*.py"]
