"""Fixtures for the tests of tango/models: models that are made once, and models of a test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, TinyFamily
from tiny_llava import build_model
from transformers import LlavaOnevisionForConditionalGeneration


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    """Every family in turn, where its decoder can do what the test is about."""
    chosen, test = FAMILIES[request.param], request.node
    if not chosen.inside and test.callspec.params.get("method") == "fastv" and test.originalname != "test_matrix":
        pytest.skip("no method prunes inside its decoder")
    return chosen


@pytest.fixture
def model(tmp_path: Path) -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision of the test's own; its folder is tmp_path."""
    return build_model(tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LlavaOnevisionForConditionalGeneration]:
    """LLaVA-OneVisions by (dtype, attention), each made once; tests leave them as they were."""
    made: dict[Any, LlavaOnevisionForConditionalGeneration] = {}

    def get(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> LlavaOnevisionForConditionalGeneration:
        key = (dtype, attention)
        if key not in made:
            made[key] = build_model(tmp_path_factory.mktemp("model"), dtype, attention)
        return made[key]

    return get
