"""What stands around the reading of a checkpoint: what libraries say in one line, and an end to what runs for ever."""

import contextlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import save_file

from tango.inference.checks import CheckpointError, check_size, in_one_line, limited


@pytest.mark.parametrize("error, told", [
    (TypeError("\n the first\nthe second\n"), "'model' cannot be loaded: its config.json: TypeError: the first"),
    (RuntimeError(""), "'model' cannot be loaded: its config.json: RuntimeError: "),
    (OSError("\n\n the first line \nthe second"), "'model' cannot be loaded: its config.json: the first line"),
    (OSError(""), "'model' cannot be loaded: its config.json: OSError"),
    (ValueError("'model' has no vocabulary\nthe second"), "'model' has no vocabulary"),
    (ValueError("it wants custom code"), "'model' needs code that it brings along, which is not run"),
    (StrictDataclassFieldValidationError("width", TypeError("not a number\nthe third")), "'model' cannot be loaded: "
     "its config.json: Validation error for field 'width': TypeError: not a number"),
    (CheckpointError("as it was\nsaid"), "as it was\nsaid"),
])  # fmt: skip
def test_what_libraries_say_is_told_in_one_line(error: Exception, told: str) -> None:
    with pytest.raises(CheckpointError) as raised, in_one_line("model", "its config.json"):
        raise error
    assert str(raised.value) == told


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("of a GPU"), RuntimeError("can't allocate memory")]
)
def test_a_full_memory_is_not_the_fault_of_a_checkpoint(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, in_one_line("model", "its config.json"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("held, fits", [([5, 5], True), ([3, 2], True), ([3, 1], False), ([1, 1], False)])
def test_no_room_is_made_for_more_than_twice_what_the_weights_hold(
    sharded: bool, held: list[int], fits: bool, tmp_path: Path
) -> None:
    """Ten parameters. Of several files those that are there count; without any nothing is known."""
    model = torch.nn.Linear(9, 1, device="meta")
    tensors = {f"{number}": torch.zeros(size) for number, size in enumerate(held)}
    check_size(model, str(tmp_path))
    if sharded:
        for name, tensor in tensors.items():
            save_file({name: tensor}, tmp_path / f"{name}.safetensors")
        index = {"weight_map": {name: f"{name}.safetensors" for name in (*tensors, "gone")}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    with contextlib.nullcontext() if fits else pytest.raises(CheckpointError, match=rf"10 .*they hold {sum(held)}"):
        check_size(model, str(tmp_path))


def test_what_runs_for_ever_is_ended() -> None:
    """Also within a function that calls no other; afterwards nothing is traced that was not before."""

    def spin() -> None:
        ends = time.monotonic() + 300
        while time.monotonic() < ends:
            pass

    before, begun = sys.gettrace(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"it did not end within 0.2 s"), limited(0.2):
        spin()
    assert time.monotonic() - begun < 120 and sys.gettrace() is before
