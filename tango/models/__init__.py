"""Model families, and `attach`: put a pruner on a model for the length of a `with` block.

A family is one file and one line in FAMILIES. Its file has `FAMILY`, a subclass of `tango.models.family.Family`.
"""

import contextlib
import copy
import difflib
import importlib
import inspect
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tango.models.family import Family
from tango.models.in_llm import DecoderPruner
from tango.models.prompt import Session, VideoRecord
from tango.models.seam import Seam
from tango.models.versions import TRANSFORMERS as TRANSFORMERS
from tango.models.versions import check_transformers
from tango.pruners.base import Pruner

__all__ = ["FAMILIES", "Session", "VideoRecord", "attach", "family_of"]

# transformers class -> module of its family; modules are imported when a model asks for them.
FAMILIES = {
    "LlavaOnevisionForConditionalGeneration": "tango.models.llava_onevision",
    "LlavaVideoForConditionalGeneration": "tango.models.llava_video",
    "Qwen2_5_VLForConditionalGeneration": "tango.models.qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "tango.models.qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "tango.models.qwen3_vl",
    "InternVLForConditionalGeneration": "tango.models.internvl",
    "VideoLlama3ForConditionalGeneration": "tango.models.video_llama_3",
    "Qwen3_5ForConditionalGeneration": "tango.models.qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "tango.models.qwen3_5",
    "Qwen3OmniMoeThinkerForConditionalGeneration": "tango.models.qwen3_omni",
}

REPLACED = ("generate", "forward", "prepare_inputs_for_generation")  # methods of an attached model
ENTERING = threading.Lock()


def family_of(model: nn.Module) -> type[Family]:
    """The family of a model, by the name of its class or of one it derives from.

    Raises TypeError, with the classes that are supported and the nearest of them, for any other model.
    """
    if name := name_of(model):
        family: type[Family] = importlib.import_module(FAMILIES[name]).FAMILY
        return family
    parts = dict(model.named_modules()) if isinstance(model, nn.Module) else getattr(model, "__dict__", {})
    for path, part in parts.items():  # of a wrapper, as DistributedDataParallel, or a pipeline
        if name := name_of(part):
            raise TypeError(f"no pruning for {type(model).__name__}, but for the {name} in it: attach to its .{path}")
    raise TypeError(f"no pruning for {type(model).__name__}; {supported([type(model).__name__])}")


def name_of(model: Any) -> str | None:
    """The name of the class of FAMILIES that a model is of, or derives from."""
    return next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in FAMILIES), None)


def supported(names: Sequence[str]) -> str:
    """The classes that have a family, the one nearest to these names, and where it says how to add another."""
    near = [name for wanted in names for name in difflib.get_close_matches(wanted, FAMILIES, 1, cutoff=0.6)][:1]
    nearest = f"; the nearest of these is {near[0]}" if near else ""
    return f"supported: {', '.join(FAMILIES)}{nearest}; how to add one: docs/models.md#adding-a-family"


def attach(model: nn.Module, pruner: Pruner) -> contextlib.AbstractContextManager[Session]:
    """Prune the videos of every prompt that `model` sees in `generate()` and `forward()` while the context is open.

    Yields a Session whose `videos` tells what the last call kept. The model is left as it was found, also when the
    body raised. Prompts without a video pass through untouched. `generate()` and `forward()` take two more keyword
    arguments, `video_timestamps` and `video_keys` (see `Seam.generate`); `forward()` returns the logits of the pruned
    prompt, whose rows are padded on the side they came with.

    Calls of several threads run one after another. What torch.compile has compiled runs uncompiled while the context is
    open, since compiled code would leave out what is attached. A copy.deepcopy() of the model is a plain model.
    `model` may also be what torch.compile or PEFT has made of one.

    Raises ImportError for a version of transformers that was not tested, TypeError for a model of no known family,
    RuntimeError if a pruner is attached to the model already, ValueError or FileNotFoundError if something that the
    pruner needs cannot be had; each when the context is entered. One that never is has done nothing, and warns of it.
    """
    context = attached(model, pruner)
    weakref.finalize(context, check_entered, context.gen, type(pruner).__name__).atexit = False
    return context


def check_entered(attached: Any, name: str) -> None:
    """Warn of a context that is gone without having been entered, as Python does of coroutines."""
    if inspect.getgeneratorstate(attached) == inspect.GEN_CREATED:
        how = f"write: with {name}(..)(model): model.generate(..)"
        warnings.warn(f"{name} was given a model and pruned nothing: {how}", RuntimeWarning, stacklevel=3)


@contextlib.contextmanager
def attached(model: nn.Module, pruner: Pruner) -> Iterator[Session]:
    """The context that attach() gives."""
    check_transformers()
    model = unwrapped(model)
    family = family_of(model)
    if not isinstance(pruner, Pruner):
        got = repr(pruner) if isinstance(pruner, type) else type(pruner).__name__
        raise TypeError(f"attach() needs a pruner, as Tango(retention_ratio=0.1), not {got}")
    alone(model, pruner)
    decoder = family.language_model(model)
    layers = decoder.config.num_hidden_layers
    inside, before = pruner.in_llm(layers), pruner.before_llm(layers)
    decoder_pruner = DecoderPruner(decoder, inside) if inside is not None else None
    if before.in_tower or before.tower_reuse is not None:  # imported by none else
        from tango.models import merging, reuse

        family = merging.merging(family, before) if before.in_tower else reuse.reusing(family)
    seam = Seam(model, family(model, before), before, decoder_pruner)
    with torch.compiler.set_stance("force_eager"), covered(model, seam):
        yield seam.session


def alone(model: nn.Module, pruner: Pruner) -> None:
    """Raise RuntimeError if a pruner is attached to the model already."""
    if (seam := getattr(vars(model).get("generate"), "seam", None)) is not None:
        raise RuntimeError(
            f"a pruner ({seam.pruner.name}) is attached to this {type(model).__name__} already; "
            f"leave its context before you attach {pruner.name}"
        )


def unwrapped(model: Any) -> Any:
    """The transformers model in what torch.compile (`_orig_mod`) or PEFT (get_base_model) has made of it."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def covered(model: Any, seam: Seam) -> Iterator[None]:
    """Replace generate() and forward() of a model, and how it is copied; all as before at the end."""
    before = {name: value for name, value in vars(model).items() if name in REPLACED}

    def copied(memo: dict[int, Any]) -> Any:
        with seam.lock:
            hooks.close()
            try:
                return copy.deepcopy(model, memo)
            finally:
                install()

    def pickled(protocol: int) -> Any:
        raise RuntimeError(f"a pruner ({seam.pruner.name}) is attached to this {type(model).__name__}: leave its "
                           "context before you pickle the model, or save its state_dict()")  # fmt: skip

    def install() -> None:
        for name, call in calls.items():
            setattr(model, name, call)
        model.__deepcopy__, model.__reduce_ex__ = copied, pickled
        hooks.callback(uncover)
        if seam.family.core is not model:  # as Qwen3-Omni's in older versions is
            hooks.enter_context(seam.family.core.register_forward_pre_hook(seam.past, with_kwargs=True))
        hooks.enter_context(seam.family.installed())
        if seam.decoder_pruner is not None:  # after the family's: the decoder's hooks run in this order
            hooks.enter_context(seam.decoder_pruner.installed(seam.session))

    def uncover() -> None:
        del model.__deepcopy__, model.__reduce_ex__
        for name, call in calls.items():
            if vars(model).get(name) is call:  # else somebody has wrapped it since
                delattr(model, name)
                vars(model).update({name: before[name]} if name in before else {})

    calls = {name: seam.replacement(name) for name in REPLACED}
    with contextlib.ExitStack() as hooks:
        try:
            with ENTERING:  # another thread may have come first
                alone(model, seam.pruner)
                install()
            yield
        finally:
            with seam.lock:  # calls of other threads end first
                hooks.close()
                seam.attached = False
