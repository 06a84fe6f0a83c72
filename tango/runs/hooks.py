"""Wraps functions of a framework where it has no extension point. Nothing on disk is touched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function of a module, or a method of a class, by wrapper(original, *arguments); once.

    Raises:
        AttributeError: there is none of the name.
    """
    found = vars(owner)[name] if name in vars(owner) else getattr(owner, name)  # modules may load theirs late
    bound = isinstance(found, staticmethod | classmethod)
    original = found.__func__ if bound else found
    if getattr(original, "_tango", False):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped._tango = True  # type: ignore[attr-defined]
    setattr(owner, name, type(found)(wrapped) if bound else wrapped)
