"""Tensors that say they are on a GPU and compute on the CPU, to see what the host would wait for.

Every operation goes through a mode that knows which tensors are on the device. It counts what the host waits for (a
number or a shape asked of the device, a copy to the host, a blocking copy from it) and what is launched, and refuses
what PyTorch refuses, or does behind one's back: operations on tensors of both sides.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")  # the one device beside the CPU that PyTorch turns to without having it
aten = torch.ops.aten

# The host waits for their outcome, or for the shape of it.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "repeat_interleave", "masked_scatter", "histc", "allclose",
}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}
# Those that only look at the same memory, or give memory: nothing runs on the device.
NO_LAUNCH = {"detach", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided"}


class OnDevice(torch.Tensor):
    """A tensor said to be on the device, over one on the CPU."""

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )

    def __init__(self, real):
        self.held = real

    is_meta = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the pretended device outside of its mode")


class PretendCuda(TorchDispatchMode):
    """Run operations on OnDevice tensors; `waits` counts by operation what the host waits for, `launches` the rest."""

    def __init__(self):
        super().__init__()
        self.waits, self.launches = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        inside = [isinstance(x, OnDevice) for x in flat]
        if any(x.device == DEVICE and not there for x, there in zip(flat, inside, strict=True)):
            raise RuntimeError(f"{func}: a tensor that PyTorch made of a list by itself, which cannot be followed")
        target = kwargs.get("device")
        to_device = any(inside) if target is None else torch.device(target) == DEVICE
        if name in ("_to_copy", "copy_"):
            sides = {isinstance(x, OnDevice) for x in flat} | {to_device}
            waits = len(sides) > 1 and not (to_device and (kwargs.get("non_blocking") or True in args[2:]))
        elif any(inside):
            mixed = [x for x, there in zip(flat, inside, strict=True) if not there and x.dim()]
            # Places may lie on the host: they are copied, which is to wait.
            places = name in INDEXING and isinstance(args[0], OnDevice) and all(x.dtype == torch.int64 for x in mixed)
            if mixed and not places:
                raise RuntimeError(f"{func}: tensors of the device and of the host, {[tuple(x.shape) for x in flat]}")
            masks = name in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
            # Where output_size says the shape of repeat_interleave, the host need not wait for it.
            sized = name == "repeat_interleave" and kwargs.get("output_size") is not None
            waits = (name in WAITS and not sized) or masks or bool(mixed)
        else:
            waits = False
        if waits:
            self.waits[name] += 1
        if (to_device or waits) and not func.is_view and name not in NO_LAUNCH:
            self.launches[name] += 1
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
        out = func(*args, **kwargs)
        if name == "_local_scalar_dense" or not to_device:
            return out
        # What is changed in place is the same tensor afterwards.
        known = {id(x.held): x for x in flat if isinstance(x, OnDevice)}
        wrap = lambda x: known[id(x)] if id(x) in known else OnDevice(x)  # noqa: E731
        return tree_map(lambda x: wrap(x) if isinstance(x, torch.Tensor) else x, out)


def made_on_the_host(make):
    """torch.tensor() or torch.as_tensor(), which fill tensors of the device where no mode sees it."""

    def made(data, *, device=None, **kwargs):
        if isinstance(data, (list, tuple)):
            data = tree_map(lambda x: x.item() if isinstance(x, OnDevice) else x, data)
        tensor = make(data, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


@contextmanager
def pretend_cuda():
    """A mode in which tensors go to the device by .to(DEVICE)."""
    with (
        mock.patch.object(torch, "tensor", made_on_the_host(torch.tensor)),
        mock.patch.object(torch, "as_tensor", made_on_the_host(torch.as_tensor)),
        mock.patch.object(torch, "autocast"),
        PretendCuda() as mode,
    ):
        yield mode
