"""Reading the recorded outputs of published code: in tests/golden/ Tango's, in tests/golden/<method>/ the others'."""

import json
from pathlib import Path

from safetensors import safe_open


def cases(method: str = "") -> list[Path]:
    return sorted((Path(__file__).with_name("golden") / method).glob("case_*.safetensors"))


def read(path: Path):
    """(tensors with features, or the states in their place, in fp32; parameters, grid) of a case."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parameters = json.loads(file.metadata()["parameters"])
    given = next(name for name in ("features", "hidden_states", "inputs_embeds") if name in tensors)
    tensors["features"] = tensors[given].float()
    return tensors, parameters, (parameters["grid_height"], parameters["grid_width"])
