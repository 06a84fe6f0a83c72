"""Files that a kill at any moment leaves whole: the journal of finished samples, and JSON files.

A journal has one JSON line a sample, flushed to the disk before the next one starts: a SIGKILL loses at most the sample
in flight, and a run that was killed goes on where it was. Each rank writes its own file and reads everybody's when it
starts.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class JournalError(RuntimeError):
    """The journal cannot be used; the message says why."""


class Journal:
    """Finished samples of one run, of all ranks, as `entries` by key.

    Args:
        folder: where the files of this run lie; made if missing.
        run: identifies the run: model, method, settings, code. Other runs' files in the folder are not looked at.
        rank: which process of the run this is.

    Raises:
        JournalError: another living process writes the file of this rank, or a file is damaged.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, run: str, rank: int = 0) -> None:
        self.folder, self.run = Path(folder), run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{run}-rank{rank}.jsonl"
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held until close())
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise JournalError(
                f"{str(self.path)!r} is being written by another process; wait for it, stop it, or write elsewhere"
            ) from error
        self._drop_torn_line()
        self.entries: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob(f"{run}-rank*.jsonl")):
            self.entries.update(read_journal(file))

    def _drop_torn_line(self) -> None:
        """A line that a kill cut short has no end; appending to it would spoil the next one too."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)

    def append(self, key: str, entry: dict[str, Any]) -> None:
        """Add a finished sample; it is on the disk when this returns. A later entry of the same key wins.

        Raises:
            JournalError: it could not be written, as on a full disk; the entries before it are whole.
        """
        text = json.dumps({"key": key, **entry}, ensure_ascii=False, separators=(",", ":")) + "\n"
        left = memoryview(text.encode(errors="backslashreplace"))  # half a character of a reply is no UTF-8
        try:
            while left:  # a disk that fills up takes part of a line
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._drop_torn_line()
            raise JournalError(
                f"{str(self.path)!r} cannot be written: {error.strerror}; its {len(self.entries)} finished samples "
                "are kept: put that right and start again"
            ) from error
        self.entries[key] = {"key": key, **entry}

    def close(self) -> None:
        """Close the file; nothing can be added any more."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of one file by key; a torn last line is left out.

    Raises:
        JournalError: a line before the last is damaged, which no kill does.
    """
    lines = path.read_bytes().split(b"\n")
    entries: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            entries[entry["key"]] = entry
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):  # no newline after it: torn
                break
            raise JournalError(
                f"{str(path)!r}, line {number}, is not an entry: {error}; delete the file to start anew"
            ) from error
    return entries


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, and have it on the disk before it takes its name."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
