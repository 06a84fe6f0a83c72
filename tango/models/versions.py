"""Which versions of transformers work, and all that is here only because they differ: each goes with its oldest."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

# Those that the families' tests pass with: from the first, below the second. As in pyproject.toml.
TRANSFORMERS = ("5.17", "5.25")
# What arguments and outputs of a model or layer may call its cache; before 5.24 it is the second.
CACHES = ("cache", "past_key_values")
# Whether LlavaOnevisionModel.forward() puts the last newline behind a video itself, as before 5.18.
FORWARD_ENDS_VIDEOS = Version(transformers.__version__).release < (5, 18)


def check_transformers() -> None:
    """Raise ImportError unless transformers is of a version that was tested: others hand data over in other places."""
    least, below = TRANSFORMERS
    if not Version(least).release <= Version(transformers.__version__).release < Version(below).release:
        raise ImportError(
            f"transformers {transformers.__version__} is installed, and pruning is tested with versions from {least} "
            f"to below {below}; install one of these: pip install 'transformers>={least},<{below}'"
        )


def core_of(model: Any, tower: str) -> Any:
    """What of a model is below its output projection, and has the tower; before 5.22 Qwen3-Omni's thinker itself."""
    return model if hasattr(model, tower) else model.model


def deepstack(output: Any) -> list[Tensor]:
    """Features (N, D) of the tower's layers; before 5.18 a layer's are one tensor, since then one a video."""
    return [x if isinstance(x, Tensor) else torch.cat(x) for x in output.deepstack_features]


def hooks_run_again() -> bool:
    """Whether gradient checkpointing computes a layer's hooks again, as before 5.23, or its forward() alone."""
    return "__call__" in vars(GradientCheckpointingLayer)


def stored_config(pretrained: str, revision: str) -> Any:
    """A config.json, whatever it holds; None for a list, over which transformers stumbles before 5.24."""
    try:
        return PreTrainedConfig.get_config_dict(pretrained, revision=revision)[0]
    except TypeError:
        return None
