"""docs/reproduce.md says what scripts/estimate.py computes, about the benchmarks that the sweeps run."""

import importlib.util
import re
import sys
from pathlib import Path

from tango.sweeps.frameworks import LMMS_EVAL, VLMEVALKIT

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduce.md").read_text()


def load_estimate():
    spec = importlib.util.spec_from_file_location("estimate", ROOT / "scripts" / "estimate.py")
    sys.modules["estimate"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_estimates_are_those_of_the_script():
    estimate = load_estimate()
    shown = re.search(r"<!-- scripts/estimate.py -->\n(.*)\n<!-- end -->", PAGE, re.DOTALL)[1]
    assert shown.splitlines() == list(estimate.lines())
    # What the rates were worked out from comes out again.
    unpruned, pruned = (
        estimate.MODELS["LLaVA-OneVision-7B"].gpu_seconds(r, estimate.PREFILL_RATE) for r in (None, 0.1)
    )
    assert abs(pruned - (0.56280 + 4 / 83.66)) < 1e-4
    assert f"{unpruned / pruned:.1f} times" in " ".join(PAGE.split())


def test_what_the_page_names_is_there():
    for script in set(re.findall(r"run_\w+\.sh", PAGE)):
        assert list(ROOT.glob(f"*/{script}")), script
    for benchmark in (LMMS_EVAL.benchmarks["Video-MME"], *VLMEVALKIT.benchmarks.values()):
        assert benchmark.repository is None or benchmark.repository in PAGE
