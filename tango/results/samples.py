"""The samples of tables in one file beside them, samples.tar.xz: a sweep's finished cells with all that `tango verify`
follows. Whatever reads folders of cells reads it as such a folder.
"""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath

from tango.inference.files import regular, write_whole
from tango.results.cells import Cell, ResultsError, find_cells
from tango.sweeps.cells import EFFICIENCY

ARCHIVE = "samples.tar.xz"
# Of a cell's folder: what it came to, its journal, its records, and the framework's own log of each answer and score.
KEPT = ("cell.json", "identity", "run/journal/*.jsonl", f"run/*/*{EFFICIENCY}", "run/*/*_results.json",
        "run/*/*_samples_*.jsonl", "run/*/*_score.xlsx")  # fmt: skip
LARGEST = 4 * 2**30  # bytes that an archive may hold: many times what 100,000 samples are
MOST = 20_000  # files that it may: those of thousands of cells; empty ones take time, too


def pack(places: Iterable[Path], archive: Path) -> None:
    """Write the finished cells in some folders <sweep>/cells/<name> into an archive, the same bytes for the same files.

    Raises:
        ResultsError: they are more than an archive may hold.
        OSError: a file cannot be read or written.
    """
    finished = sorted(place for place in places if (place / "cell.json").is_file())
    files = [(place, file) for place in finished
             for file in sorted({file for pattern in KEPT for file in regular(place, pattern)})]  # fmt: skip
    if len(files) > MOST or (size := sum(file.stat().st_size for _, file in files)) > LARGEST:
        what = f"{len(files):,} files" if len(files) > MOST else f"{size:,} bytes"
        raise ResultsError(f"{archive}: {len(finished):,} cells have {what}, more than reading it again would take")
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


def read_folders(folders: Iterable[str | Path]) -> tuple[list[Cell], list[str]]:
    """find_cells() of folders and of archives there, without the cells' files.

    Raises:
        ResultsError: a folder is not there, or holds no finished cell.
    """
    places = [Path(folder) for folder in folders]
    with unpacked(places) as samples:
        found, remarks = find_cells(places, samples)
        return [cell for _, cell in found], [named(remark, samples) for remark in remarks]


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
