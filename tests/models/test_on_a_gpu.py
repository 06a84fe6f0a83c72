"""Whole models on the pretended GPU: nothing on the way mixes tensors of the device and of the host."""

from copy import deepcopy

import pytest
import torch
from families import make_pruner
from pretend_cuda import DEVICE, pretend_cuda

from tango.pruners import REGISTRY


def to_device(thing):
    """A model's parameters and buffers, or a dictionary's tensors, on the device."""
    if isinstance(thing, dict):
        return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in thing.items()}
    for module in thing.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().to(DEVICE), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(DEVICE)
    return thing


def example(family):
    """Two prompts, of which the first is padded and has an image."""
    video = family.video()
    rows = [5, *family.image, *video, 7, 8], [5, *video, 11, *video, 12]
    return family.prompt(*rows) | family.visuals("ivvv")


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_forward(family, name):
    model, inputs, pruner = deepcopy(family.model()), example(family), make_pruner(name, 0.3)
    with pruner(model), torch.no_grad():
        here = model(**inputs).logits
    with pretend_cuda(), torch.no_grad():
        to_device(model)
        with pruner(model):
            there = model(**to_device(inputs)).logits.cpu()
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_generate(family):
    model, inputs = deepcopy(family.model()), example(family) | {"max_new_tokens": 5, "do_sample": False}
    with make_pruner("tango", 0.3)(model):
        here = model.generate(**inputs)
    with pretend_cuda():
        to_device(model)
        with make_pruner("tango", 0.3)(model):
            there = model.generate(**to_device(inputs)).cpu()
    assert torch.equal(there, here)


def test_waits_do_not_grow_with_frames(family):
    """What the host waits for in a forward pass does not grow with the video: a step that is only done where products
    leave something open, or for one batch more, makes a few waits of difference, and one a frame would make 42.
    """

    def waits(frames):
        model, video = deepcopy(family.model()), family.video(frames)
        inputs = family.prompt([5, *video, 7]) | family.pixels(1, frames)
        with pretend_cuda() as mode, torch.no_grad():
            to_device(model)
            inputs = to_device(inputs)
            with make_pruner("tango", 0.3)(model):
                mode.waits.clear()
                model(**inputs)
        return mode.waits.total()

    assert waits(48) - waits(6) < 42 / 2
