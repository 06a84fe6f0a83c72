"""What stands around the reading of a checkpoint: what libraries say in one line, and an end to what runs for ever."""

import sys
import time

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError

from tango.inference.checks import CheckpointError, in_one_line, limited


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


def test_what_runs_for_ever_is_ended() -> None:
    """Also within a function that calls no other; afterwards nothing is traced that was not before."""

    def spin() -> None:
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            pass

    before, begun = sys.gettrace(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"it did not end within 0.2 s"), limited(0.2):
        spin()
    assert time.monotonic() - begun < 20 and sys.gettrace() is before
