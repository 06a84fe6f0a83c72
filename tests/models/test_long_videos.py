"""Encoding a video takes one chunk of the tower beyond its features, however long it is, and keeps fused attention."""

import weakref
from unittest import mock

import pytest
import torch
from families import Spy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tango.models import family_of

CHUNK = 8  # frames


class Alive(TorchDispatchMode):
    """Counts the bytes of floating-point tensors that were made while it is entered: alive now, and most at once."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def encode(family, signals, frames):
    """Most bytes at once while a video is encoded, and the bytes of what is handed over."""
    model = family.model()
    inputs = family.prompt([5, *family.video(frames), 7]) | family.pixels(1, frames)
    own = family_of(model)(model, Spy(wanted=signals))
    with torch.no_grad(), Alive(*inputs.values(), *model.parameters(), *model.buffers()) as alive:
        (video,) = own.videos(inputs)
    tensors = [getattr(video.tokens, name) for name in ("features", "saliency", "segment_features", "keys")]
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t is not None}
    return alive.most, sum(held.values())


@pytest.mark.parametrize("signals", [frozenset(), frozenset({"saliency", "segment_features", "keys"})])
def test_only_the_features_grow(family, monkeypatch, signals):
    monkeypatch.setattr(family.limit, CHUNK * family.units)
    (least, few), (most, many) = (encode(family, signals, frames) for frames in (3 * CHUNK, 9 * CHUNK))
    pixels = 6 * CHUNK * family.pixels(1, 1)["pixel_values_videos"].nbytes
    assert many > few and most > many
    assert most - least <= many - few + pixels // 50


@pytest.mark.parametrize("saliency", ["global_query", None])
def test_saliency_keeps_fused_attention(family, saliency):
    """The tower makes the same calls of it with and without, in every block."""
    model = family.model()
    inputs = family.prompt([5, *family.video(), 7]) | family.pixels()
    counts = []
    for signals in (frozenset(), frozenset({"saliency"})):
        own = family_of(model)(model, Spy(wanted=signals, saliency=saliency))
        real = torch.nn.functional.scaled_dot_product_attention
        with (
            torch.no_grad(),
            mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", side_effect=real) as calls,
        ):
            (video,) = own.videos(inputs)
        counts.append(calls.call_count)
        assert (video.tokens.saliency is None) == (not signals)
    tower = family.tower(model)
    assert counts[0] == counts[1] >= len(tower.blocks if hasattr(tower, "blocks") else tower.encoder.layers)
