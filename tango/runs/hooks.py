"""Where a framework has no extension point: wraps its functions, hides secrets in what it prints, and ends its process.
Nothing on disk is touched.
"""

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from huggingface_hub import get_token

from tango.runs.screen import visible

# In names of variables. MAX_TOKENS, TOKENIZERS_PARALLELISM and where a token's file lies are no secrets.
SECRET = re.compile(r"(TOKEN(?!S|IZER)|SECRET|PASSWORD|API_?KEY|ACCESS_?KEY)(?!.*(PATH|FILE|DIR|URL)$)", re.IGNORECASE)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
FLAG = re.compile(r"(--[\w-]*(?:key|token|secret|password)[=\s]+)(?!-)\S+", re.IGNORECASE)  # of a command line
HIDDEN = "[hidden]"
LEAST = 4  # letters of what is taken for a secret


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


def mask(text: str) -> str:
    """A text without tokens, keys and passwords: those of the environment, the hub's own, and what looks like one."""
    values = {value for name, value in os.environ.items() if SECRET.search(name)} | {get_token() or ""}
    for value in sorted((value for value in values if len(value) >= LEAST), key=len, reverse=True):
        text = text.replace(value, HIDDEN) if value.lower() not in ("true", "false", "none") else text
    return FLAG.sub(rf"\1{HIDDEN}", HUB_TOKEN.sub(HIDDEN, text))


def mask_output() -> None:
    """Whatever this process prints or logs from now on, also to files, passes through mask()."""
    factory = logging.getLogRecordFactory()
    if not getattr(factory, "_tango", False):
        record = functools.partial(_record_masked, factory)
        record._tango = True  # type: ignore[attr-defined]
        logging.setLogRecordFactory(record)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            wrap(stream, "write", _write_masked)


def _write_masked(original: Callable[[str], int], text: str) -> int:
    original(mask(text))
    return len(text)


def _record_masked(original: Callable[..., logging.LogRecord], *args: Any, **kwargs: Any) -> logging.LogRecord:
    record = original(*args, **kwargs)
    with contextlib.suppress(TypeError, ValueError):  # a message that does not fit its arguments: logging tells so
        if (message := record.getMessage()) != (masked := mask(message)):
            record.msg, record.args = masked, None
    return record


def give_up(plugin: str, problems: Iterable[str]) -> NoReturn:
    """Say what is wrong and end this process at once, with status 1."""
    for problem in problems:
        print(visible(f"{plugin}: {problem}"), file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
