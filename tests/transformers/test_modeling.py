"""transformers' own modelling tests on each family: all tokens kept, half of them, and pruned inside the decoder.

A test that fails is run again with nothing attached: where it fails then too, the small model is not what it is made
for, and it is skipped. What differs by definition is in differences.py, and must fail; all else must pass.
"""

import contextlib
import copy
import functools
import unittest
from typing import Any

import pytest
from attached import CLASSES, MODES, PEERS, TOLD, attached_around, example, modes
from differences import reason
from torch import nn
from upstream import tester_mixin

Mixin = tester_mixin()


class Inputs:
    """What the mixin asks of a model tester: a small configuration and inputs with videos."""

    def __init__(self, parent: Any, name: str) -> None:
        self.parent, self.family = parent, PEERS[name]
        self.inputs = {name: value for name, value in example(self.family).items() if name not in TOLD}
        self.batch_size, self.seq_length = self.inputs["input_ids"].shape
        self.encoder_seq_length = self.key_length = self.seq_length
        self.is_training = True
        text = self.get_config().text_config
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, text.vocab_size

    def get_config(self) -> Any:
        return copy.deepcopy(self.family.model().config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return self.get_config(), {name: value.clone() for name, value in self.inputs.items()}

    def prepare_config_and_inputs(self) -> tuple[Any, dict[str, Any]]:
        return self.prepare_config_and_inputs_for_common()


def as_wide_as_the_prompt(self: Any, model: Any, logits: Any) -> Any:
    """Logits of the pruned prompt for all columns, of which some tests make labels: none where tokens may be gone."""
    return nn.functional.pad(logits, (0, 0, self.model_tester.seq_length - logits.shape[1], 0))


def wrapped(method: Any, name: str, mode: str) -> Any:
    """A test of the mixin with the pruner of a mode around its body."""

    @functools.wraps(method)
    def test(self: Any, *args: Any, **kwargs: Any) -> None:
        self.subTest = lambda *_, **__: contextlib.nullcontext()  # a part that fails is a failure here
        try:
            with attached_around(CLASSES[name], MODES[mode]):
                method(self, *args, **kwargs)
        except unittest.SkipTest:
            raise
        except Exception:
            self.setUp()
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.skipTest(f"fails with nothing attached as well: {type(error).__name__}")
            raise

    why = reason(name, mode, method.__name__)
    return test if why is None else pytest.mark.xfail(reason=why, strict=True)(test)


def case(name: str, mode: str) -> type:
    members: dict[str, Any] = {
        "all_model_classes": (CLASSES[name],),
        "_is_composite": True,
        "setUp": lambda self: setattr(self, "model_tester", Inputs(self, name)),
        "_logits_scored_by_loss": as_wide_as_the_prompt,
        "__module__": __name__,
    }
    made = type(f"Test_{name}_{mode}", (Mixin, unittest.TestCase), members)
    for attribute in [attribute for attribute in dir(made) if attribute.startswith("test_")]:
        method = getattr(made, attribute)
        if callable(method):
            setattr(made, attribute, wrapped(method, name, mode))
    return made


for _name, _family in PEERS.items():
    for _mode in modes(_family):
        globals()[f"Test_{_name}_{_mode}"] = case(_name, _mode)
