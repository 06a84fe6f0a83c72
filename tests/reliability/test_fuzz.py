"""Anything may be given to prune() and to the config reader: they do their work, or name what is wrong (hypothesis)."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import made_up

from tango.pruners import REGISTRY, Pruned
from tango.runs.settings import MethodSettings, SettingsError, field_types, from_environment, methods

quick = settings(max_examples=60, deadline=None, derandomize=True)
FEATURES, SALIENCY, GRID, TIMES = made_up(4, (3, 4), 8, seed=1)
VIDEO: dict[str, Any] = {
    "features": FEATURES,
    "saliency": SALIENCY,
    "grid": GRID,
    "timestamps": TIMES,
    "segment_features": FEATURES.mean(1),
    "frame_vectors": FEATURES.mean(1),
    "keys": torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(2)),
    "key": "clip",
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2, torch.int8, torch.int64,
          torch.bool, torch.complex64]  # fmt: skip
SCALES = [0.0, -1.0, 1e-42, 1e3, 1e20, 1e38, math.inf, math.nan]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12]), max_size=4)
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.lists(st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=2)), max_size=5), st.just({}),
)  # fmt: skip


@st.composite
def tensors(draw: Any, like: torch.Tensor) -> Any:
    """The tensor with its type, size, shape, memory layout or single values changed; or something else."""
    made = like.clone()
    if draw(st.booleans()):
        made = made * draw(st.sampled_from(SCALES))
    if draw(st.booleans()):
        made.view(-1)[draw(st.integers(0, made.numel() - 1))] = draw(st.sampled_from(SCALES))
    if draw(st.booleans()):
        made = made.to(draw(st.sampled_from(DTYPES)))
    kind = draw(st.sampled_from(["as it is", "shape", "cut", "layout", "meta", "sparse", "odd"]))
    if kind == "shape":
        return torch.ones(draw(SHAPES), dtype=made.dtype)
    if kind == "cut":
        return made[: draw(st.integers(0, 4))]
    if kind == "layout":
        return made.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "meta":
        return made.to("meta")
    if kind == "sparse" and made.dtype is torch.float32:
        return made.to_sparse()
    return draw(ODD) if kind == "odd" else made


GRIDS = st.one_of(
    st.sampled_from([(3, 4), [4, 3], (12, 1), (2, 4), (-3, -4), (0, 12), (3.0, 4.0), (3, 4, 1), torch.tensor([3, 4])]),
    ODD,
)
FUZZ = {name: tensors(value) for name, value in VIDEO.items() if isinstance(value, torch.Tensor)}
FUZZ |= {"grid": GRIDS, "key": ODD}
FUZZ["timestamps"] = st.one_of(FUZZ["timestamps"], st.lists(st.floats(), min_size=4, max_size=4), ODD)


@pytest.mark.parametrize("name", sorted(REGISTRY))
@quick
@given(changed=st.sampled_from(sorted(FUZZ)).flatmap(lambda name: st.tuples(st.just(name), FUZZ[name])),
       ratio=st.floats(0.01, 1.0), exact=st.booleans())  # fmt: skip
def test_prune_gives_a_valid_result_or_names_the_input(
    name: str, changed: tuple[str, Any], ratio: float, exact: bool
) -> None:
    argument, value = changed
    video = VIDEO | {argument: value}
    features = video.pop("features")
    refused, pruned = None, None
    try:
        pruned = REGISTRY[name](retention_ratio=ratio, exact_budget=exact).prune(features, **video)
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        # Another shape of the features makes the others wrong.
        assert any(word in refused for word in (VIDEO if argument == "features" else (argument,))), refused
        return
    assert isinstance(pruned, Pruned) and pruned.indices.dtype == torch.int64
    total = features.shape[0] * features.shape[1]
    assert 1 <= len(pruned.indices) == len(pruned.features) <= total
    assert int(pruned.indices.min()) >= 0 and int(pruned.indices.max()) < total
    assert pruned.features.dtype == features.dtype and bool(pruned.features.isfinite().all())
    assert int(pruned.segment_sizes.sum()) == features.shape[0]


KEYS = st.sampled_from(sorted({*REGISTRY, *(key for method in REGISTRY.values() for key in field_types(method))}))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.dates(), st.just(10**400)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=2))
CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet=":-[]{}&*!|>%@`'\"#,?\n\t a1~.", max_size=40).map(str.encode),
    st.dictionaries(KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4).map(
        lambda content: yaml.safe_dump(content).encode()
    ),
    st.dictionaries(SCALARS, VALUES, max_size=2).map(lambda content: yaml.safe_dump(content).encode()),
)
FIELDS = st.tuples(
    KEYS, st.one_of(st.text(max_size=8), st.sampled_from(["nan", "1e999", "1;2", "-1", "none", "9" * 5000]))
)
ARGS = st.one_of(st.text(max_size=30), st.lists(FIELDS.map("=".join), max_size=3).map(",".join))


def check(environ: dict[str, str], keys: list[str]) -> None:
    """Settings, or an error that names one of these, or the variable."""
    refused, chosen = None, None
    try:
        chosen = from_environment(environ)
    except SettingsError as error:
        refused = str(error)
    if refused is not None:
        assert any(key in refused for key in keys), refused
        assert len(refused) < 20_000
        return
    assert isinstance(chosen, MethodSettings)
    assert chosen.pruner is None or chosen.pruner.settings()


@settings(quick, max_examples=300)
@given(content=CONTENTS, method=st.sampled_from(methods()))
def test_a_config_is_read_or_its_error_names_the_file(content: bytes, method: str) -> None:
    handle, name = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        check({"WRAPPER": method, "TANGO_CONFIG": name}, [Path(name).name])
    finally:
        os.unlink(name)


@settings(quick, max_examples=300)
@given(args=ARGS, method=st.one_of(st.sampled_from(methods()), st.text(max_size=8)))
def test_arguments_are_read_or_their_error_names_them(args: str, method: str) -> None:
    check({"WRAPPER": method, "TANGO_ARGS": args}, ["TANGO_ARGS", "WRAPPER"])


@settings(quick, max_examples=100)
@given(
    name=st.one_of(
        st.text(max_size=20), st.sampled_from(["~", "~x/y", "/", "a" * 5000, "\0", "/dev/null/x", "/proc/1/mem"])
    )
)
def test_any_name_of_a_config(name: str) -> None:
    check({"WRAPPER": "tango", "TANGO_CONFIG": name}, ["TANGO_CONFIG"])
