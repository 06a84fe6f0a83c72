"""Finished cells in folders: of sweeps, of a framework's own command line, and in samples.tar.xz. That is one file
beside tables, a sweep's finished cells with all that `tango verify` follows, and is read like the sweep's folder.
"""

import contextlib
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tango.inference.files import DAMAGED, regular, write_whole
from tango.results.cells import Cell, ResultsError, check_cell, read_cell
from tango.sweeps import lmms_cells, vlmeval_cells
from tango.sweeps.cells import EFFICIENCY
from tango.sweeps.sweep import CellError

ARCHIVE = "samples.tar.xz"
# Of a cell's folder: what it came to, its journal, its records, and the framework's own log of each answer and score.
KEPT = ("cell.json", "identity", "run/journal/*.jsonl", f"run/*/*{EFFICIENCY}", "run/*/*_results.json",
        "run/*/*_samples_*.jsonl", "run/*/*_score.xlsx")  # fmt: skip
LARGEST = 4 * 2**30  # bytes that an archive may hold: many times what 100,000 samples are
MOST = 20_000  # files that it may: those of thousands of cells; empty ones take time, too


class Unfinished(ResultsError):
    """A cell is not finished, or failed."""


class Found(NamedTuple):
    """A run in a folder. cell: what it came to, or why that cannot be read. where: the only place of its folder or
    file, whichever links lead there.
    """

    file: Path
    where: Path
    cell: Cell | Exception


def read_folders(folders: Iterable[str | Path]) -> tuple[list[Cell], list[str]]:
    """All finished cells in some folders, and what was left out, with its reason; see finished().

    Raises:
        ResultsError: a folder is not there, or holds no finished cell.
    """
    with finished(folders) as (runs, remarks):
        return [cell for _, _, cell in runs], remarks


@contextlib.contextmanager
def finished(folders: Iterable[str | Path]) -> Iterator[tuple[list[tuple[str, Path, Cell]], list[str]]]:
    """All finished cells in some folders and what was left out, with its reason. With each its name for people, the
    folder of a sweep's cell or the file of a run by hand, and its file, which is there until the end.

    Args:
        folders: of sweeps, which hold cells/<name>/cell.json, of what a framework's own command line wrote, of archives
            of these, or of such folders; links to folders are followed.

    Raises:
        ResultsError: a folder is not there, or holds no finished cell.
    """
    places = list(map(Path, folders))
    with unpacked(places) as samples:
        runs: dict[Path, tuple[str, Path, Cell]] = {}
        remarks: list[str] = []
        for folder in places:
            if not folder.is_dir():
                raise ResultsError(f"there is no folder {str(folder)!r}")
            parts = [folder, *(content for home, content in samples.items() if home.is_relative_to(folder))]
            found = [one for part in parts for one in runs_below(part)]
            broken = [str(one.cell) for one in found if isinstance(one.cell, Exception)]
            if len(broken) == len(found):
                raise ResultsError(
                    f"no finished cells below {str(folder)!r}; a framework's own run has *_efficiency.json and scores, "
                    "and a sweep's folder holds cells/<name>/cell.json" + "".join(f"\n  {why}" for why in broken)
                )
            remarks += [why for why in broken if why not in remarks]
            for file, where, cell in found:
                if not isinstance(cell, Exception):
                    place = named(str(file.parent if file.name == "cell.json" else file), samples)
                    runs.setdefault(where, (place, file, cell))
        yield list(runs.values()), [named(remark, samples) for remark in remarks]


def runs_below(folder: Path) -> Iterator[Found]:
    """All runs in and below a folder: those of a framework's own command line, then the cells of sweeps,
    <sweep>/cells/<name>, each once, whichever links lead there; among them folders that cannot be read.
    """
    for file in regular(folder, f"**/*{EFFICIENCY}"):
        if "cells" not in (*file.relative_to(folder).parts, folder.name):
            yield from _by_hand(file)
    places: list[Path] = []
    unread: list[OSError] = []
    entered: set[str] = set()
    for here, inside, _ in os.walk(folder, followlinks=True, onerror=unread.append):
        if (real := os.path.realpath(here)) in entered:
            inside.clear()  # a link that leads back
            continue
        entered.add(real)
        inside.sort()
        if os.path.basename(here) == "cells":
            places += [Path(here, name) for name in inside]
    yield from (Found(Path(error.filename), Path(error.filename).resolve(), error) for error in unread)
    for place in sorted(places):
        yield _of_sweep(place)


def _by_hand(file: Path) -> list[Found]:
    """The runs of a framework's own command line that a file of records is of, one a benchmark."""
    of_lmms = file.with_name(file.name.replace(EFFICIENCY, "_results.json")).is_file()
    collect = lmms_cells.collect_by_hand if of_lmms else vlmeval_cells.collect_by_hand
    where = file.resolve()
    try:
        cells = [check_cell(cell, file) for cell in collect(file)]
        return [Found(file, where / cell["cell"]["benchmark"], cell) for cell in cells]
    except (CellError, ResultsError) as error:
        why = str(error) if str(file) in str(error) else f"{file}: {error}"
    except DAMAGED as error:
        why = f"{file}: not the files of a whole run ({error!r})"
    return [Found(file, where, ResultsError(why))]


def _of_sweep(place: Path) -> Found:
    """The cell of a sweep in its folder."""
    file = place / "cell.json"
    cell: Cell | Exception
    try:
        cell = read_cell(file) if file.is_file() else Unfinished(f"{place}: not finished, or failed")
    except (ResultsError, OSError) as error:
        cell = error
    return Found(file, place.resolve(), cell)


def pack(places: Iterable[Path], archive: Path) -> None:
    """Write the finished cells in some folders <sweep>/cells/<name> into an archive, the same bytes for the same files.

    Raises:
        ResultsError: they are more than an archive may hold.
        OSError: a file cannot be read or written.
    """
    whole = sorted(place for place in places if (place / "cell.json").is_file())
    files = [(place, file) for place in whole
             for file in sorted({file for pattern in KEPT for file in regular(place, pattern)})]  # fmt: skip
    if len(files) > MOST or (size := sum(file.stat().st_size for _, file in files)) > LARGEST:
        what = f"{len(files):,} files" if len(files) > MOST else f"{size:,} bytes"
        raise ResultsError(f"{archive}: {len(whole):,} cells have {what}, more than reading it again would take")
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9) as tar:
        for place, file in files:
            member = tarfile.TarInfo(f"cells/{place.name}/{file.relative_to(place).as_posix()}")
            data = file.read_bytes()
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    write_whole(archive, content.getvalue())


@contextlib.contextmanager
def unpacked(folders: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """Archives in and below some folders: for each one's folder a folder with its content, there until the end.

    Raises:
        ResultsError: an archive is damaged, holds something else, or too much.
    """
    with tempfile.TemporaryDirectory(prefix="tango-") as room:
        found = dict.fromkeys(archive for folder in folders for archive in regular(folder, f"**/{ARCHIVE}"))
        samples = {archive.parent: _unpack(archive, Path(room, str(number))) for number, archive in enumerate(found)}
        try:
            yield samples
        except ResultsError as error:
            raise ResultsError(named(str(error), samples)) from error


def _unpack(archive: Path, folder: Path) -> Path:
    try:
        with tarfile.open(archive, "r:xz") as tar:
            size = 0
            for number, member in enumerate(tar):
                parts = PurePosixPath(member.name).parts
                if parts[:1] != ("cells",) or ".." in parts or not member.isfile():
                    raise ResultsError(f"{archive}: it holds {member.name!r}, and only files of cells/ belong there")
                if (size := size + member.size) > LARGEST:
                    raise ResultsError(f"{archive}: it holds more than {LARGEST / 2**30:g} GB")
                if number >= MOST:
                    raise ResultsError(f"{archive}: it holds more than {MOST:,} files")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise ResultsError(f"{archive}: damaged ({error}); take it from where it is from again") from error
    return folder


def named(text: str, samples: Mapping[Path, Path]) -> str:
    """A text that names files as they were unpacked, with the archives' own names in place of their folders'."""
    for home, folder in samples.items():
        text = text.replace(str(folder), str(home / ARCHIVE))
    return text
