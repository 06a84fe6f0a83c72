"""A pruner on every model that the body of a test makes, from the model's first call to the end of the test."""

import contextlib
from collections.abc import Iterator
from typing import Any

from families import FAMILIES, Qwen3Moe, Qwen35Moe, TinyFamily

from tango.models import attach
from tango.pruners import Pruner, Tango
from tango.pruners.fastv import FastV

# What transformers itself does is compared with: positions are its own. The head that LLaVA lacks is not needed.
COMMON: dict[str, Any] = {"positions": "transformers", "saliency": "global_query"}
MODES: dict[str, Pruner] = {
    "whole": Tango(retention_ratio=1.0, **COMMON),
    "half": Tango(retention_ratio=0.5, exact_budget=True, **COMMON),  # rows of one length
    "inside": FastV(retention_ratio=0.75, pruned_layer=1, **COMMON),
}
PEERS: dict[str, TinyFamily] = FAMILIES | {family.name: family for family in (Qwen3Moe(), Qwen35Moe())}
CLASSES = {name: type(family.model()) for name, family in PEERS.items()}
TOLD = ("video_frames",)  # arguments that there are while a pruner is attached alone


def modes(family: TinyFamily) -> list[str]:
    """Those that a family can do: pruning inside layers of linear attention is refused."""
    return [mode for mode in MODES if family.inside or mode != "inside"]


@contextlib.contextmanager
def attached_around(model_class: Any, pruner: Pruner) -> Iterator[None]:
    """While open, every model of a class has the pruner attached once it is called or generates."""
    own = {name: vars(model_class).get(name) for name in ("__call__", "generate")}
    with contextlib.ExitStack() as stack:
        on: set[int] = set()
        models = []  # kept, so that no id is used twice

        def prepare(model: Any) -> None:
            if id(model) not in on and type(model) is model_class:
                on.add(id(model))
                models.append(model)
                stack.enter_context(attach(model, pruner))

        def tell(kwargs: dict[str, Any]) -> None:
            """What InternVL's videos cannot do without: tests cut and repeat what the model has, and know no more."""
            if model_class is CLASSES["internvl"] and kwargs.get("pixel_values") is not None:
                kwargs.setdefault("video_frames", [4] * (len(kwargs["pixel_values"]) // 4))

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            prepare(self)
            tell(kwargs)
            return super(model_class, self).__call__(*args, **kwargs)

        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            prepare(self)
            tell(kwargs)
            method = vars(self).get("generate") or super(model_class, self).generate
            return method(*args, **kwargs)

        model_class.__call__, model_class.generate = call, generate
        try:
            yield
        finally:
            for name, value in own.items():
                delattr(model_class, name) if value is None else setattr(model_class, name, value)


def example(family: TinyFamily) -> dict[str, Any]:
    """Three rows, each with one video and of one length; names of arguments as the model has them."""
    rows = [[5 + row, *family.video(), 7, 8 + row, 9] for row in range(3)]
    return family.prompt(*rows) | family.pixels(3)
