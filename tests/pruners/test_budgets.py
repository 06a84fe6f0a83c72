"""Budgets of Tango: the published code's counts where a quotient in double precision lies next to a whole number."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tango import Tango

CASES = sorted((Path(__file__).parents[1] / "data" / "budgets").glob("*.safetensors"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_published_counts(path):
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    grid = tuple(settings.pop("grid"))
    pruned = Tango(**settings).prune(tensors["features"], tensors["saliency"], grid, tensors["timestamps"])
    assert torch.equal(pruned.indices, tensors["published_indices"])
    torch.testing.assert_close(pruned.features, tensors["published_features"], atol=1e-5, rtol=1e-6)


def test_both_cases_are_here():
    assert len(CASES) == 2


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.15, 0.2, 0.3, 1 / 3])
def test_every_size_in_double_precision(ratio):
    """ceil of places times the ratio, each step the double next to the exact result: worked out with fractions."""

    def double(exact):
        return Fraction(float(exact))

    method = Tango(ratio)
    for tokens in (64, 169, 196):
        static = torch.arange(1, tokens)
        for frames in (2, 3, 8, 9, 32):
            found = method._budgets(torch.full_like(static, frames), static, tokens).tolist()
            for still, (of_static, of_dynamic) in zip(static.tolist(), found, strict=True):
                share = double(Fraction(frames * tokens - (frames - 1) * still, frames * tokens))
                raised = min(Fraction(1), double(Fraction(ratio) / share))
                assert of_static == math.ceil(double(still * raised))
                assert of_dynamic == frames * math.ceil(double((tokens - still) * raised))
