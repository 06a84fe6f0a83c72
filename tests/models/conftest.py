"""Fixtures for the tests of tango/models: models that are made once, and models of a test's own."""

import os
from collections.abc import Callable, Iterator
from inspect import isfunction, ismethod
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, TinyFamily
from tiny_llava import build_model
from transformers import LlavaOnevisionForConditionalGeneration

# Families whose code is mostly that of the first four go through the tests of theirs that see their own part. With
# TANGO_FAMILIES=all they go through all of them, which takes minutes.
LATER = ("qwen3_5", "internvl", "video_llama_3", "qwen3_omni_moe")
OWN = {
    "test_records", "test_text_and_images_pass_through", "test_image_and_video_in_one_prompt",
    "test_padding_is_no_image", "test_all_kept_is_encoded_as_the_model_does", "test_modules_for_timing",
    "test_logits_are_those_of_the_shorter_prompt",
    "test_chunks_change_nothing", "test_bad_features_name_the_video", "test_times_and_keys", "test_malformed_prompts",
    "test_all_kept_is_equal", "test_going_on_from_a_cache", "test_right_padding_is_generated_from_the_left",
    "test_an_index_twice_in_any_family", "test_sizes_are_those_of_the_encoded_videos",
}  # fmt: skip
METHODS_IN = ("float32-sdpa-batch3-", "bfloat16-eager-batch1-tango")  # of test_matrix
WAYS_IN = ("greedy", "all beams", "without cache")  # of generating


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Take out what families that came later need not go through each time."""

    def own(item: Any) -> bool:
        values = getattr(getattr(item, "callspec", None), "params", {})
        if os.environ.get("TANGO_FAMILIES") == "all" or not {values.get("family"), values.get("name")} & {*LATER}:
            return True
        if item.originalname == "test_matrix":
            return any(part in item.name for part in METHODS_IN)
        return item.originalname in OWN and values.get("way", WAYS_IN[0]) in WAYS_IN

    out = [item for item in items if not own(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if own(item)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[TinyFamily]:
    """Every family in turn, where its decoder can do what the test is about."""
    chosen, test = FAMILIES[request.param], request.node
    if not chosen.inside and test.callspec.params.get("method") == "fastv" and test.originalname != "test_matrix":
        pytest.skip("no method prunes inside its decoder")
    yield chosen
    left = [f"{type(part).__name__}.{name}" for part in chosen.shared() for name, value in vars(part).items()
            if isfunction(value) or ismethod(value)]  # fmt: skip
    assert not left, f"the test left {left} on a model that other tests use"


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
