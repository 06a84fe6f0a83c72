"""Names of checkpoints, and of arguments in messages. Imports nothing heavy, so that a slip is told at once."""

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

EXAMPLES = "lmms-lab/llava-onevision-qwen2-7b-ov, llava-hf/llava-onevision-qwen2-7b-ov-hf"

HUB_SECONDS = 5  # for one answer of the hub, before libraries try it again and again
_CALLED: dict[str, str] = {}


class CheckpointError(ValueError):
    """A checkpoint or a way of loading it that cannot be; the message says what can."""


def called(name: str, rest: str = "") -> str:
    """`name` and `rest` as a message has them: an argument or variable by its own name, or as `calling` says."""
    return _CALLED.get(name + rest) or _CALLED.get(name, name) + rest


@contextlib.contextmanager
def calling(names: Mapping[str, str]) -> Iterator[None]:
    """Messages made meanwhile, in any thread, name arguments and variables by the options that were typed for them."""
    before = _CALLED.copy()
    _CALLED.update(names)
    try:
        yield
    finally:
        _CALLED.clear()
        _CALLED.update(before)


def check_pretrained(pretrained: str) -> None:
    """Turn away what is neither a folder nor looks like a hub id, before anything is loaded.

    Raises:
        CheckpointError: says what to pass.
    """
    said = called("pretrained=", repr(pretrained))
    if not isinstance(pretrained, str) or not pretrained:
        raise CheckpointError(f"{said}: pass a folder or a hub id, for example {EXAMPLES}")
    path = Path(os.path.expanduser(pretrained))  # which leaves an unknown user as it is, where Path fails
    if path.is_dir():
        return
    near = nearest(path)
    hint = f"; did you mean {str(near)!r}?" if near else ""
    if pretrained.startswith(("/", "./", "../", "~")) or pretrained.count("/") != 1:
        raise CheckpointError(f"{said}: no such folder, and not a hub id of the form owner/name{hint}")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(pretrained, "config.json"), str)
    except HFValidationError as error:
        raise CheckpointError(f"{said}: no such folder, and not a hub id: {error}{hint}") from error
    if not cached and (near or path.parent.is_dir()):  # a slip: asking the hub would take half a minute
        where = f"no such folder in {str(path.parent)!r}" if path.parent.is_dir() else "no such folder"
        raise CheckpointError(f"{said}: {where}{hint or f'; if it is a hub id: hf download {pretrained}'}")
    if not cached:
        _check_hub(pretrained)


def _check_hub(pretrained: str) -> None:
    """Turn away a model that would have to be downloaded from a hub that gives no answer; CheckpointError."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, from hub 2.0 on httpx2's

    if constants.is_offline_mode():  # then nothing waits for it
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/{pretrained}/resolve/main/config.json", timeout=HUB_SECONDS)
    except HTTPError as error:
        raise CheckpointError(
            f"{pretrained!r} is no folder and not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be "
            f"reached ({error or type(error).__name__}); give a folder, or with a network: hf download {pretrained}"
        ) from error


def nearest(path: Path) -> Path | None:
    """The checkpoint whose folder has a name most like that of one that is not there; None if none has."""

    def folders(of: Path) -> dict[str, Path]:
        found = sorted(of.iterdir()) if of.is_dir() else []
        return {folder.name: folder for folder in found if folder.is_dir()}

    beside = {name: folder for name, folder in folders(path.parent).items() if (folder / "config.json").is_file()}
    if close := difflib.get_close_matches(path.name, beside, 1):
        return beside[close[0]]
    # checkpoints/x for checkpoint/x, and for x alone.
    around = folders(path.parent.parent)
    likely = difflib.get_close_matches(path.parent.name, around, cutoff=0.8) if path.parent.name else list(around)
    there = (around[name] / path.name for name in likely)
    return next((folder for folder in there if (folder / "config.json").is_file()), None)
