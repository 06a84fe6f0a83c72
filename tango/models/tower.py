"""What is taken from any vision tower besides its features: outputs of modules, and SigLIP's pooling head in fp32."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextlib.contextmanager
def recorded(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Tensor]]:
    """While open, a call of a module leaves its output, under the module's name, in the dictionary that this yields.

    Only what is named is held, which matters: at 384 pixels the states of all layers of SigLIP take 45 MB a frame.
    """
    outputs: dict[Any, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            note = in_this_thread(lambda *call, name=name: outputs.update({name: call[-1]}))
            hooks.enter_context(module.register_forward_hook(note))
        yield outputs


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, but for calls of other threads: of another model that shares the module, or of the tower alone."""
    mine = threading.get_ident()
    return lambda *call: hook(*call) if threading.get_ident() == mine else None


def weight(module: nn.Module, name: str) -> Tensor:
    """A parameter by its name below a module, also where accelerate keeps it away until its own module is called."""
    path, _, own = name.rpartition(".")
    module = module.get_submodule(path)
    tensor: Tensor = getattr(module, own)
    if not tensor.is_meta:
        return tensor
    from accelerate.utils import align_module_device  # nothing else puts parameters on the meta device

    with align_module_device(module):
        return torch.clone(getattr(module, own))


@dataclass
class PoolingHead:
    """SigLIP's attention pooling (arXiv 2303.15343): a learned probe attends to all patches of a frame.

    tensors: in fp32, by their names below the vision model, and "folded" (heads, D), the keys' weights times the query;
    tango.models.pooling_head reads them. config: a SiglipVisionConfig.
    """

    tensors: dict[str, Tensor]
    config: Any

    def attention(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of last hidden states (F, P, D) before post_layernorm: normed states (F, P, D) and weights (F, heads, P)."""
        self.tensors = {name: tensor.to(hidden.device) for name, tensor in self.tensors.items()}
        weight, bias = self.tensors["post_layernorm.weight"], self.tensors["post_layernorm.bias"]
        normed = F.layer_norm(hidden.float(), weight.shape, weight, bias, self.config.layer_norm_eps)
        return normed, torch.softmax(self.tensors["folded"] @ normed.mT, dim=-1)


def joined(chunks: Iterable[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Tensors (n, ..) by name, a chunk at a time, as tensors (length, ..): filled in place, not held twice."""
    whole, start = dict[str, Tensor](), 0
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        for name, tensor in chunk.items():
            if name not in whole:
                whole[name] = tensor.new_empty(length, *tensor.shape[1:])
            whole[name][start : start + count] = tensor
        start += count
    return whole
