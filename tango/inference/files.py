"""Files that are there whole or not at all, however their writer ends."""

import errno
import os
from pathlib import Path

# What reading files of others may end in: they hold anything, and one of them may not end the report about all.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, have it on the disk, then give it its name; text becomes UTF-8.

    Half a character, as models and names of files have them, is written as its escape. Whoever reads meanwhile sees the
    file as it was before; if this fails, it stays so.

    Raises:
        OSError: it cannot be written; names the file.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular(folder: Path, pattern: str) -> list[Path]:
    """The files that a pattern finds in a folder, sorted: no folders, and no pipes, whose readers wait for a writer."""
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def check_regular(file: Path) -> Path:
    """A file that can be read without waiting for anybody.

    Raises:
        OSError: it is not there, a folder or a pipe.
    """
    if not file.is_file():
        raise OSError(errno.ENOENT, "no regular file", str(file))
    return file
