"""Where a framework has no extension point: wraps its functions, and ends its process. Nothing on disk is touched."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


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


def give_up(plugin: str, problems: Iterable[str]) -> NoReturn:
    """Say what is wrong and end this process at once, with status 1."""
    for problem in problems:
        print(f"{plugin}: {problem}", file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
