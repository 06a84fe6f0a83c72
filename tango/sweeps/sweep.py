"""Runs a grid of evaluations as processes, here or on a cluster (machines.py): resumable, one sweep to a folder,
failures kept to their cell.

A cell is one run of a framework's command line. It is finished when its `cell.json` is there, which is written whole or
not at all; a cell that was interrupted is run again and takes its finished samples from the framework's journal, and so
is one of whose samples some failed. If what a cell stands for has changed since (checkpoint, data, code, limit), its
result is kept in earlier/, from where it is taken back when it is asked for again, and the cell is run anew; the
journal stays, and knows by itself which samples still stand.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from tango.runs.journal import JournalCounter
from tango.runs.screen import Screen
from tango.sweeps.folder import CellFolder, locked
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

    def place(self, cell: Cell) -> CellFolder:
        """The cell's folder."""
        return CellFolder(self.folder / "cells" / cell.name, cell.identity, self.console)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, if it has one that still stands and is whole, whether or not samples of it failed."""
        return self.place(cell).finished()

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
                self.place(cell).exchange()
            found = [(cell, self.finished(cell)) for cell in self.cells]
            waiting = [cell for cell, result in found if result is None or failed_samples(result)]
            done = len(self.cells) - len(waiting)
            if done:
                self.console.print(f"{done} of {len(self.cells)} cells are finished already")
            total = sum(cell.samples for cell in waiting)
            overall = progress.add_task("all cells", total=total, told=f"{done}/{len(self.cells)} cells")
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
                    progress.update(overall, completed=counted, told=f"{done}/{len(self.cells)} cells {left}")
            finally:
                self.machine.stop([one.job for one in running])
        return self.failures

    def _start(self, cell: Cell, progress: Progress) -> _Running:
        place = self.place(cell)
        place.begin()
        job = self.machine.start(cell.command, cell.environment, place.log)
        task = progress.add_task(f"  {cell.name}", total=cell.samples, told="")
        return _Running(cell, job, task, JournalCounter(place.run / "journal"))

    def _settle(self, cell: Cell, status: int | str) -> None:
        """Turn what a cell's process left into its result, or into a failure, or both if some of its samples failed."""
        place = self.place(cell)
        ended = "" if status == 0 else f"{_how_it_ended(status)}; {place.last_words()}"
        try:
            if ended and status != SAMPLES_FAILED:
                raise CellError(ended)
            result = {"identity": cell.identity, **cell.collect(place.run)}
            failed = failed_samples(result)
            if ended and not failed:
                raise CellError(ended)
        except Exception as error:  # whatever is wrong with a cell's files, the other cells go on
            what = str(error) if isinstance(error, CellError) else f"its files are damaged: {error!r}"
            self.failures[cell.name] = f"{ended or what} (log: {place.log})"
            self.console.print(f"{cell.name} failed", style="red", markup=False)
            place.finish(None)
            return
        place.finish(result)
        if failed:
            self.failures[cell.name] = (
                f"{len(failed)} of its {len(failed) + len(result['samples'])} samples failed and are not in its "
                f"result, the first: {failed[0]['reason']}; the next start tries them again (log: {place.log})"
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
                locks.enter_context(locked(self.place(cell).path))
            yield

    def _progress(self) -> Progress:
        name, told = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[told]}"))
        return Progress(name, BarColumn(), MofNCompleteColumn(), told, console=self.console)


def failed_samples(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples that a result is without, as tango.runs.summary.failures() has them."""
    return list(result.get("provenance", {}).get("failed", []))


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


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends the sweep as SIGINT does, so that its cells are stopped with it."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
