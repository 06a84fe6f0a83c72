"""Runs a grid of evaluations as processes, here or on a cluster (machines.py): resumable, one sweep to a folder,
failures kept to their cell.

A cell is one run of a framework's command line. It is finished when its `cell.json` is there, which is written whole or
not at all; a cell that was interrupted is run again and takes its finished samples from the framework's journal, and so
is one of whose samples some failed. If what a cell stands for has changed since (checkpoint, data, code, limit), its
result is kept in earlier/, from where it is taken back when it is asked for again, and the cell is run anew; the
journal stays, and knows by itself which samples still stand.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from tango.inference.files import write_whole
from tango.runs.hooks import mask
from tango.runs.journal import write_json
from tango.runs.provenance import digest
from tango.runs.reading import read_json
from tango.runs.screen import Screen
from tango.sweeps.machines import Job, Machine, ThisMachine
from tango.sweeps.machines import SweepError as SweepError

POLL_SECONDS = 0.5
SAMPLES_FAILED = 1  # exit status of both frameworks with our plugins


class CellError(RuntimeError):
    """A cell ended without a usable result; the message says why."""


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    name: unique in its sweep; names its folder. identity: a hash of all that its result follows from.
    command, environment: what to run, in the current folder; the environment is added to this process's.
    samples: how many it will answer, for the progress display.
    collect: reads what the command wrote and returns the content of cell.json; raises CellError if that is no result.
        Its "provenance" may list samples that have no answer, under "failed".
    what: framework, benchmark, method, ratio .., as cell.json has them.
    """

    name: str
    identity: str
    command: Sequence[str]
    environment: dict[str, str]
    samples: int
    collect: Callable[[Path], dict[str, Any]] = field(repr=False)
    what: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Running:
    cell: Cell
    job: Job
    task: TaskID
    counter: JournalCounter
    count: int = 0


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
        changed = 0
        for file in filter(Path.is_file, self.folder.glob("*.jsonl")):  # a pipe would wait for its writer
            run = file.name.rpartition("-rank")[0]
            keys = self._keys.setdefault(run, set())
            with file.open("rb") as lines:
                time_ns = os.fstat(lines.fileno()).st_mtime_ns
                lines.seek(self._read.get(file, 0))
                new = lines.read()
            whole = new[: new.rfind(b"\n") + 1]
            if (whole or file not in self._read) and time_ns >= changed:  # a clock set back makes growing files older
                self._latest, changed = run, time_ns
            self._read[file] = self._read.get(file, 0) + len(whole)
            for line in whole.split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError):  # the cell itself says that it is damaged
                    keys.add(read_json(line)["key"])
        return len(self._keys.get(self._latest, ()))


class Sweep:
    """A folder of cells.

    Args:
        folder: holds cells/<name>/ with cell.json, log.txt and run/, which is the framework's.
        cells: the grid, in the order it is to be run.
        jobs: how many run at a time on this machine; the cores are divided among them.
        machine: where else to run them.
        part: others may work in the folder meanwhile, as parts of the same sweep, but at none of these cells.

    Raises:
        SweepError: no jobs, or two cells of one name.
    """

    def __init__(
        self,
        folder: str | Path,
        cells: Sequence[Cell],
        jobs: int = 1,
        console: Console | None = None,
        machine: Machine | None = None,
        part: bool = False,
    ) -> None:
        names = [cell.name for cell in cells]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SweepError(f"two cells of the name {', '.join(sorted(twice))}")
        self.folder, self.cells = Path(folder), list(cells)
        self.machine: Machine = machine or ThisMachine(jobs)
        self.console, self.part = console or Screen(), part
        self.failures: dict[str, str] = {}

    def path(self, cell: Cell) -> Path:
        """The cell's folder."""
        return self.folder / "cells" / cell.name

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, if it has one that still stands and is whole, whether or not samples of it failed."""
        result = self._read(self.path(cell) / "cell.json")
        return result if result is not None and result["identity"] == cell.identity else None

    def _read(self, file: Path) -> dict[str, Any] | None:
        if not file.is_file():
            return None
        try:
            result: dict[str, Any] = read_json(file.read_bytes())
            return result if isinstance(result["identity"], str) else None
        except (ValueError, TypeError, KeyError) as error:
            self.console.print(f"{file} is damaged ({error}): the cell is run again", markup=False, soft_wrap=True)
            return None

    def results(self) -> list[dict[str, Any]]:
        """Results of all finished cells, in the grid's order."""
        return [result for cell in self.cells if (result := self.finished(cell)) is not None]

    def run(self) -> dict[str, str]:
        """Run what is not finished; returns the reason for each cell that failed.

        Raises:
            SweepError: another sweep works in this folder, or it cannot be written.
            KeyboardInterrupt: on SIGINT or SIGTERM, after the running cells were stopped. The next run goes on.
        """
        self.failures = {}
        try:
            return self._run()
        except OSError as error:
            raise SweepError(
                f"{error}; what was finished in {str(self.folder)!r} is kept: put that right and start again"
            ) from error

    def _run(self) -> dict[str, str]:
        with self._locked(), _terminated_is_interrupted(), self._progress() as progress:
            for cell in self.cells:
                self._exchange(cell)
            found = [(cell, self.finished(cell)) for cell in self.cells]
            waiting = [cell for cell, result in found if result is None or failed_samples(result)]
            done = len(self.cells) - len(waiting)
            if done:
                self.console.print(f"{done} of {len(self.cells)} cells are finished already")
            total = sum(cell.samples for cell in waiting)
            overall = progress.add_task("all cells", total=total, cells=f"{done}/{len(self.cells)} cells", left="")
            running: list[_Running] = []
            clock, settled = time.monotonic(), 0  # samples of cells that ended in this run
            counted_before = total
            try:
                while waiting or running:
                    while waiting and len(running) < self.machine.slots:
                        running.append(self._start(waiting.pop(0), progress))
                    time.sleep(POLL_SECONDS)
                    for one in list(running):
                        one.count = min(one.counter.count(), one.cell.samples)
                        progress.update(one.task, completed=one.count)
                        if (status := one.job.poll()) is not None:
                            running.remove(one)
                            settled += one.cell.samples
                            self._settle(one.cell, status)
                            progress.remove_task(one.task)
                            done += one.cell.name not in self.failures
                    counted = settled + sum(one.count for one in running)
                    counted_before = min(counted_before, counted)  # what journals held already took no time now
                    left = _time_left(time.monotonic() - clock, counted - counted_before, total - counted)
                    progress.update(overall, completed=counted, cells=f"{done}/{len(self.cells)} cells", left=left)
            finally:
                self.machine.stop([one.job for one in running])
        return self.failures

    def _exchange(self, cell: Cell) -> None:
        """Put a finished result that stands for something else into earlier/, and take the one asked for from there."""
        folder = self.path(cell)
        found = self._read(folder / "cell.json")
        if found is not None and found["identity"] != cell.identity:
            shelf = folder / "earlier" / digest(found["identity"])
            _move(folder, shelf)
            self.console.print(f"{cell.name} has changed; its result is kept in {shelf}", markup=False, soft_wrap=True)
        self._take_back(cell)

    def _take_back(self, cell: Cell) -> None:
        """Put back what earlier/ has of a cell: its result, or the outputs of its result, which stayed where it was."""
        folder = self.path(cell)
        back = folder / "earlier" / digest(cell.identity)
        whole, outputs = (back / "cell.json").is_file(), any((back / "run").glob("*"))
        if whole == (folder / "cell.json").is_file() or not (whole or outputs):
            return
        if outputs:
            self._sweep_out(folder / "run")
        _move(back, folder)
        shutil.rmtree(back)
        write_whole(folder / "identity", cell.identity)

    @staticmethod
    def _sweep_out(run: Path) -> None:
        """Delete the outputs of an attempt that did not finish; journals are kept."""
        for output in run.iterdir() if run.is_dir() else []:
            if output.name != "journal":
                shutil.rmtree(output) if output.is_dir() and not output.is_symlink() else output.unlink()

    def _start(self, cell: Cell, progress: Progress) -> _Running:
        folder = self.path(cell)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "identity", cell.identity)
        run = folder / "run"
        if (folder / "cell.json").is_file():  # some of its samples failed, and are tried again
            _move(folder, folder / "earlier" / digest(cell.identity), outputs_alone=True)
        self._sweep_out(run)
        job = self.machine.start(cell.command, cell.environment, folder / "log.txt")
        task = progress.add_task(f"  {cell.name}", total=cell.samples, cells="", left="")
        return _Running(cell, job, task, JournalCounter(run / "journal"))

    def _settle(self, cell: Cell, status: int | str) -> None:
        """Turn what a cell's process left into its result, or into a failure, or both if some of its samples failed."""
        folder = self.path(cell)
        ended = "" if status == 0 else f"{_how_it_ended(status)}; {_last_words(folder / 'log.txt')}"
        try:
            if ended and status != SAMPLES_FAILED:
                raise CellError(ended)
            result = {"identity": cell.identity, **cell.collect(folder / "run")}
            failed = failed_samples(result)
            if ended and not failed:
                raise CellError(ended)
        except Exception as error:  # whatever is wrong with a cell's files, the other cells go on
            what = str(error) if isinstance(error, CellError) else f"its files are damaged: {error!r}"
            self.failures[cell.name] = f"{ended or what} (log: {folder / 'log.txt'})"
            self.console.print(f"{cell.name} failed", style="red", markup=False)
            if (folder / "cell.json").is_file():
                self._take_back(cell)
            return
        write_json(folder / "cell.json", result)
        shutil.rmtree(folder / "earlier" / digest(cell.identity), ignore_errors=True)  # the same, and less of it
        if failed:
            self.failures[cell.name] = (
                f"{len(failed)} of its {len(failed) + len(result['samples'])} samples failed and are not in its "
                f"result, the first: {failed[0]['reason']}; the next start tries them again (log: {folder / 'log.txt'})"
            )
        without = f", without {len(failed)} samples that failed" if failed else ""
        scores = [row["score"] for row in result.get("samples", []) if row.get("score") is not None]
        scored = f": {100 * sum(scores) / len(scores):.1f} % of {len(scores)} questions" if scores else ""
        self.console.print(f"{cell.name} finished{scored}{without}", markup=False, highlight=False)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as locks:
            locks.enter_context(locked(self.folder, shared=self.part))
            for cell in self.cells if self.part else []:
                locks.enter_context(locked(self.path(cell)))
            yield

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        return Progress(
            *columns,
            TextColumn("{task.fields[cells]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
        )


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


def failed_samples(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples that a result is without, as tango.runs.summary.failures() has them."""
    return list(result.get("provenance", {}).get("failed", []))


def _move(source: Path, target: Path, outputs_alone: bool = False) -> None:
    """Move a cell's result, log and outputs, but no journal, which both may need."""
    (target / "run").mkdir(parents=True, exist_ok=True)
    outputs = [file for file in (source / "run").glob("*") if file.name != "journal"]
    told = [] if outputs_alone else [source / "log.txt", source / "cell.json"]
    for file in [*outputs, *told]:  # the result last: with it the move is done
        place = target / file.relative_to(source)
        if place.is_dir():  # of a move that was interrupted
            shutil.rmtree(place)
        if file.exists():
            os.replace(file, place)


def _time_left(elapsed: float, computed: int, remaining: int) -> str:
    """How long the rest will take at the pace so far, start-up of cells included."""
    if computed < 1 or remaining < 1:
        return ""
    seconds = int(elapsed / computed * remaining)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _how_it_ended(status: int | str) -> str:
    if isinstance(status, str):
        return status
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in [*signal.Signals] else f"signal {-status}"
    return f"ended by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


def _last_words(log: Path) -> str:
    """The end of a log, without blank lines and progress bars."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    said = [line.split("\r")[-1].strip() for line in text.splitlines() if line.strip()]
    return mask(" / ".join(said[-3:])) or "it wrote no log"


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends the sweep as SIGINT does, so that its cells are stopped with it."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
