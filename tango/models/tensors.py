"""The safetensors files of a checkpoint: one, or several with an index. No other format is read."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def files_in(folder: Path, alone: str = WEIGHTS) -> dict[str, Path]:
    """Tensor name -> file, by a folder's index, else of all files that are called so; none where there are none."""
    if (folder / INDEX).is_file():
        return {name: folder / file for name, file in weight_map(folder / INDEX).items()}
    return {name: path for file in sorted(folder.glob(alone)) for name, path in files_of(file).items()}


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of a sharded checkpoint."""
    try:
        names = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is not the index of a sharded safetensors checkpoint: {error!r}") from error
    for file in names.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{index} names {file!r}: only .safetensors files beside it are read")
    return names


def files_of(file: Path) -> dict[str, Path]:
    """Tensor name -> this file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file ({error}); no other format is read") from error


@contextlib.contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Tensor name -> a slice of its file, which is read when it is indexed. Open as long as the context is."""
    with contextlib.ExitStack() as stack:
        shards: dict[Path, Any] = {}
        for path in sorted(set(files.values())):
            if not path.is_file():
                raise FileNotFoundError(f"{INDEX} names {path.name}, which is not in {path.parent}")
            shards[path] = stack.enter_context(safe_open(path, framework="pt"))
        held = {path: set(shard.keys()) for path, shard in shards.items()}
        if absent := sorted(name for name, path in files.items() if name not in held[path]):
            raise ValueError(f"{INDEX} names tensors that its files do not hold: {', '.join(absent)}")
        yield {name: shards[path].get_slice(name) for name, path in files.items()}


def numbers_in(file: Path) -> int:
    """How many numbers the tensors of a safetensors file hold, by its header alone."""
    with safe_open(file, "pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
