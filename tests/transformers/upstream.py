"""transformers' ModelTesterMixin, from the folder that TRANSFORMERS_TESTS names; nothing of it is kept here.

The source distribution lacks two of the modules it imports, on exporting and on generation: empty mixins stand for
them.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

NAME = "transformers_tests"


def tester_mixin() -> Any:
    folder = Path(os.environ["TRANSFORMERS_TESTS"]) / f"transformers-{transformers.__version__}" / "tests"
    package = ModuleType(NAME)
    package.__path__ = [str(folder)]
    sys.modules[NAME] = package
    for module, mixin in (("exporters.test_export", "ExportTesterMixin"),
                          ("generation.test_utils", "GenerationTesterMixin")):  # fmt: skip
        parent, _ = module.split(".")
        sys.modules[f"{NAME}.{parent}"] = ModuleType(f"{NAME}.{parent}")
        sys.modules[f"{NAME}.{module}"] = stub = ModuleType(f"{NAME}.{module}")
        setattr(stub, mixin, type(mixin, (), {}))
    return importlib.import_module(f"{NAME}.test_modeling_common").ModelTesterMixin
