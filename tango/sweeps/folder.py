"""The folder of a cell: its result, the results that it had when it stood for something else, and who works there."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from tango.inference.files import write_whole
from tango.runs.hooks import mask
from tango.runs.journal import write_json
from tango.runs.provenance import digest
from tango.runs.reading import read_json
from tango.sweeps.machines import SweepError


class CellFolder:
    """A folder `path`, for what its cell stands for now.

    cell.json: the result, which is written last. identity: what the result, or the attempt at one, stands for.
    log.txt and run/: of the cell's command. earlier/: results that stood for something else, each with its log and its
    outputs. run/journal stays where it is, since earlier and later results may need it.
    """

    def __init__(self, path: Path, identity: str, console: Console) -> None:
        self.path, self.identity, self.console = path, identity, console
        self.result, self.log, self.run = path / "cell.json", path / "log.txt", path / "run"
        self.shelf = path / "earlier" / digest(identity)

    def finished(self) -> dict[str, Any] | None:
        """The result, if there is one that still stands and is whole, whether or not samples of it failed."""
        found = self._read()
        return found if found is not None and found["identity"] == self.identity else None

    def exchange(self) -> None:
        """Put a finished result that stands for something else into earlier/, and take the one asked for from there."""
        found = self._read()
        if found is not None and found["identity"] != self.identity:
            shelf = self.path / "earlier" / digest(found["identity"])
            _move(self.path, shelf)
            told = f"{self.path.name} has changed; its result is kept in {shelf}"
            self.console.print(told, markup=False, soft_wrap=True)
        self.take_back()

    def take_back(self) -> None:
        """Put back what earlier/ has: the result, or the outputs of the result, which stayed where it was."""
        whole, outputs = (self.shelf / "cell.json").is_file(), any((self.shelf / "run").glob("*"))
        if whole == self.result.is_file() or not (whole or outputs):
            return
        if outputs:
            _sweep_out(self.run)
        _move(self.shelf, self.path)
        shutil.rmtree(self.shelf)
        write_whole(self.path / "identity", self.identity)

    def begin(self) -> None:
        """Make room for an attempt; the outputs of a result some of whose samples failed are kept until it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "identity", self.identity)
        if self.result.is_file():
            _move(self.path, self.shelf, outputs_alone=True)
        _sweep_out(self.run)

    def finish(self, result: dict[str, Any] | None) -> None:
        """The attempt came to this result, or to none, so that one from before stays."""
        if result is not None:
            write_json(self.result, result)
            shutil.rmtree(self.shelf, ignore_errors=True)  # the same, and less of it
        elif self.result.is_file():
            self.take_back()

    def last_words(self) -> str:
        """The end of the log, without blank lines and progress bars."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        said = [line.split("\r")[-1].strip() for line in text.splitlines() if line.strip()]
        return mask(" / ".join(said[-3:])) or "it wrote no log"

    def _read(self) -> dict[str, Any] | None:
        if not self.result.is_file():
            return None
        try:
            result: dict[str, Any] = read_json(self.result.read_bytes())
            return result if isinstance(result["identity"], str) else None
        except (ValueError, TypeError, KeyError) as error:
            told = f"{self.result} is damaged ({error}): the cell is run again"
            self.console.print(told, markup=False, soft_wrap=True)
            return None


@contextlib.contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold a folder's lock, alone or with others who share it; SweepError if others hold it who do not."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise SweepError(
                f"another sweep (process {lock.read().strip() or 'unknown'}) works in {str(folder)!r}; "
                "wait for it or stop it"
            ) from error
        lock.truncate(0)
        lock.write("" if shared else str(os.getpid()))
        lock.flush()
        yield


def _outputs(run: Path) -> list[Path]:
    """What a cell's command wrote, but for its journal."""
    return [file for file in run.glob("*") if file.name != "journal"]


def _sweep_out(run: Path) -> None:
    """Delete the outputs of an attempt that did not finish."""
    for output in _outputs(run):
        shutil.rmtree(output) if output.is_dir() and not output.is_symlink() else output.unlink()


def _move(source: Path, target: Path, outputs_alone: bool = False) -> None:
    """Move a cell's result, log and outputs."""
    (target / "run").mkdir(parents=True, exist_ok=True)
    told = [] if outputs_alone else [source / "log.txt", source / "cell.json"]
    for file in [*_outputs(source / "run"), *told]:  # the result last: with it the move is done
        place = target / file.relative_to(source)
        if place.is_dir():  # of a move that was interrupted
            shutil.rmtree(place)
        if file.exists():
            os.replace(file, place)
