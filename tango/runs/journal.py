r"""Files that a kill at any moment leaves whole: the journal of finished samples, and JSON files.

A journal has one JSON line a sample, flushed to the disk before the next one starts: a SIGKILL loses at most the sample
in flight, and a run that was killed goes on where it was. Each rank writes its own file and reads everybody's when it
starts. Lines end at \n alone; replies may hold any other line separator.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from tango.inference.files import regular, sync_folder, write_whole
from tango.runs.reading import read_json

log = logging.getLogger(__name__)
Entries = dict[str, dict[str, Any]]

START = b'{"key":'  # of a line of ours, torn ones too
FIELDS = {"key", "task", "doc_id", "response", "failure"}  # an object with one of these is a line of ours, if damaged


class JournalError(RuntimeError):
    """The journal cannot be used; the message says why."""


class Journal:
    """Finished samples of one run, of all ranks, as `entries` by key.

    Args:
        folder: where the files of this run lie; made if missing.
        run: identifies the run: model, method, settings, code. Other runs' files in the folder are not looked at.
        rank: which process of the run this is.

    Raises:
        JournalError: another living process writes the file of this rank, or what has its name is no journal: a link,
            no regular file, or one with other contents. Nothing of it is changed.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, run: str, rank: int = 0) -> None:
        self.folder, self.run = Path(folder), run
        self.path = self.folder / f"{run}-rank{rank}.jsonl"
        self.entries = self._begin()
        for file in sorted(self.folder.glob(f"{run}-rank*.jsonl")):
            try:
                for entry in read_journal(file).values() if file != self.path else ():
                    _merge(self.entries, entry)
            except (JournalError, OSError) as error:
                log.warning("%s is left out: %s", file, error)

    def _begin(self) -> Entries:
        """Open and lock the file of this rank; returns what it holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = _open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = self._file.readall()
            entries = parse(content, self.path)
            self._mend(content)
            sync_folder(self.folder)
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise JournalError(
                    f"{str(self.path)!r} is being written by another process; wait for it, stop it, or write elsewhere"
                ) from error
            raise
        return entries

    def _mend(self, content: bytes) -> None:
        """A line that a kill cut short has no end; appending to it would spoil the next one too."""
        whole = content.rfind(b"\n") + 1
        last = content[whole:]
        if not last:
            return
        try:
            read_json(last)
            torn = False
        except ValueError:
            torn = last.startswith(START[: len(last)])
        if torn:
            self._file.truncate(whole)
        else:  # whole but for its end, or something that is not ours to cut
            self._file.write(b"\n")

    def append(self, key: str, entry: dict[str, Any]) -> None:
        """Add a finished sample; it is on the disk when this returns. Success wins over failure, then what is later.

        If the file was deleted or renamed meanwhile, it is written anew with all that was finished.

        Raises:
            JournalError: it could not be written, as on a full disk, or another process now writes a file of its name;
                the entries before it are whole.
        """
        new = {"key": key, **entry}
        try:
            self._write([new])
            while not self._in_place():
                log.warning("%s was deleted or renamed while it was written; it is written anew", self.path)
                self._file.close()
                there = self._begin()
                self._write([one for one in [*self.entries.values(), new] if there.get(one["key"]) != one])
                for one in there.values():
                    _merge(self.entries, one)
        except OSError as error:
            raise JournalError(
                f"{str(self.path)!r} cannot be written: {error.strerror}; its {len(self.entries)} finished samples "
                "are kept: put that right and start again"
            ) from error
        _merge(self.entries, new)

    def _write(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write lines to the disk, all of them or none."""
        lines = (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n" for entry in entries)
        left = memoryview("".join(lines).encode(errors="backslashreplace"))  # half a character of a reply is no UTF-8
        before = os.fstat(self._file.fileno()).st_size
        try:
            while left:  # a disk that fills up takes part of a line
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise

    def _in_place(self) -> bool:
        """Whether the file that is written still has its name."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file; nothing can be added any more."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JournalCounter:
    """Counts the distinct finished samples of the latest run in a folder's journals, reading only what was added since
    it last looked. Other runs there are of other settings or code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, int] = {}
        self._keys: dict[str, set[str]] = {}
        self._latest = ""
        self.count()  # what grows after this is of the latest run

    def count(self) -> int:
        """How many answers there are by now."""
        for file in sorted(regular(self.folder, "*.jsonl"), key=lambda file: file.stat().st_mtime_ns):
            run = file.name.rpartition("-rank")[0]
            keys = self._keys.setdefault(run, set())
            with file.open("rb") as lines:
                lines.seek(self._read.get(file, 0))
                new = lines.read()
            whole = new[: new.rfind(b"\n") + 1]
            if (
                whole or file not in self._read
            ):  # the latest of those that grew, which a clock set back makes older than others
                self._latest = run
            self._read[file] = self._read.get(file, 0) + len(whole)
            for line in whole.split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError):  # the cell itself says that it is damaged
                    keys.add(read_json(line)["key"])
        return len(self._keys.get(self._latest, ()))


def read_journal(path: Path) -> Entries:
    """The entries of one file by key. A torn last line is left out; so are damaged lines, which are logged.

    Raises:
        JournalError: it is no regular file, or no journal.
        OSError: it cannot be read.
    """
    with _open(path, os.O_RDONLY) as file:
        return parse(file.readall(), path)


def parse(content: bytes, path: Path) -> Entries:
    """The entries in the content of a journal; raises JournalError if none of its lines looks like one."""
    entries: Entries = {}
    lines = content.split(b"\n")
    ours = not content
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        value: Any = None
        problem = ""
        try:
            value = read_json(line)
            if not isinstance(value, dict) or not isinstance(value.get("key"), str):
                problem = "it has no key"
        except ValueError as error:
            problem = str(error)
        ours |= line.startswith(START) or (isinstance(value, dict) and not FIELDS.isdisjoint(value))
        if not problem:
            _merge(entries, value)
        elif number < len(lines) or not line.startswith(START):  # else it is torn
            log.warning("%s, line %d, is set aside and its sample computed anew: %s", path, number, problem)
    if not ours:
        raise JournalError(f"{str(path)!r} is no journal of ours; move it elsewhere: nothing of it was changed")
    return entries


def _merge(entries: Entries, new: dict[str, Any]) -> None:
    """Add an entry. Of several of one key the last counts, but a failure, another rank's perhaps, never a success."""
    old = entries.get(new["key"])
    if old is None or new.get("failure") is None or old.get("failure") is not None:
        entries[new["key"]] = new


def _open(path: Path, flags: int) -> FileIO:
    """A regular file, unbuffered; anything else is refused before it is read, without waiting for a writer of a pipe.

    Raises:
        JournalError: it is a link that must not be followed, or no regular file.
    """
    if flags & os.O_NOFOLLOW and path.is_symlink():
        raise JournalError(f"{str(path)!r} is a link, and what it points to is not written; remove the link")
    file = FileIO(os.open(path, flags | os.O_NONBLOCK, 0o666), "r+" if flags & os.O_RDWR else "r")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise JournalError(f"{str(path)!r} is no regular file, so no journal; remove it")
    return file


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, and have it on the disk before it takes its name."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
