"""What the tests of FastVID, HoliTom, VisionZip and FlashVID share: comparing, and properties of any of them."""

import pytest
import torch
from golden_cases import read
from videos import made_up, prune


def same(pruned, indices, values, sizes=None, features=None):
    """Equal places, equal features but for rounding."""
    assert pruned.indices.tolist() == indices
    if values:
        torch.testing.assert_close(pruned.features.double(), torch.stack(values), atol=1e-5, rtol=1e-5)
    assert sizes is None or pruned.segment_sizes.tolist() == sizes


def check_golden(cls, path, **more):
    """A recorded case, and the same in half precision: the fp32 result, rounded once."""
    tensors, parameters, grid = read(path)
    method = cls(**{name: parameters[name] for name in cls.__dataclass_fields__ if name in parameters}, **more)
    given = {name: tensors[name] for name in ("keys", "frame_vectors") if name in tensors}
    pruned = method.prune(tensors["features"], tensors["saliency"], grid, **given)
    assert torch.equal(pruned.indices, tensors.get("output_indices", tensors["kept_indices"]))
    order = pruned.indices.sort(stable=True).indices
    assert torch.equal(pruned.indices[order], tensors["kept_indices"])
    torch.testing.assert_close(pruned.features[order], tensors["kept_features"], atol=1e-5, rtol=1e-6)
    if "segment_sizes" in tensors:
        assert torch.equal(pruned.segment_sizes, tensors["segment_sizes"])
    half = method.prune(tensors["features"].half(), tensors["saliency"], grid, **given)
    assert half.features.dtype == torch.float16
    assert torch.equal(half.indices, pruned.indices)
    assert torch.equal(half.features, pruned.features.half())
    return tensors, parameters, pruned


def check_properties(make, most, video, ratio, unique=True):
    """Of one made-up video at one ratio: places in range, finite features, a budget, nothing lost at ratio 1.

    make(ratio): the method. most(F, L, r): the most tokens it may keep.
    """
    features, saliency, grid, _ = made_up(**video)
    frames, tokens, dim = features.shape
    pruned = prune(make(ratio), (features, saliency, grid, None))
    assert 1 <= len(pruned.indices) <= most(frames, tokens, ratio)
    assert int(pruned.indices.min()) >= 0 and int(pruned.indices.max()) < frames * tokens
    assert not unique or len(pruned.indices.unique()) == len(pruned.indices)
    assert pruned.features.shape == (len(pruned.indices), dim) and pruned.features.isfinite().all()
    assert int(pruned.segment_sizes.sum()) == frames
    again = prune(make(ratio), (features.bfloat16(), saliency, grid, None))
    wide = prune(make(ratio), (features.bfloat16().float(), saliency, grid, None))
    assert again.features.dtype == torch.bfloat16
    assert torch.equal(again.indices, wide.indices)
    assert torch.equal(again.features, wide.features.bfloat16())
    whole = prune(make(1.0), (features, saliency, grid, None))
    assert torch.equal(whole.indices, torch.arange(frames * tokens))
    assert torch.equal(whole.features, features.flatten(0, 1))


def check_refusals(method, settings):
    """Bad inputs and bad settings are named. settings: (field, value) pairs that are out of range."""
    features, saliency, grid, _ = made_up(3, (2, 3), 6)
    nan = features.clone()
    nan[1, 2, 3] = float("nan")
    dark = saliency.clone()
    dark[2, 1] = float("inf")
    cases = [
        ((nan, saliency, grid), r"features must be finite.*\[1, 2, 3\]"),
        ((features, None, grid), "saliency is missing"),
        ((features, saliency[:2], grid), "saliency must have shape"),
        ((features, dark, grid), r"saliency must be finite.*\[2, 1\]"),
        ((features, saliency, (2, 2)), "grid 2 x 2"),
    ]
    for (x, s, g), message in cases:
        with pytest.raises(ValueError, match=message):
            prune(method, (x, s, g, None))
    for field, value in settings:
        with pytest.raises(ValueError, match=rf"{type(method).__name__}\.{field} = "):
            type(method)(**{field: value})
