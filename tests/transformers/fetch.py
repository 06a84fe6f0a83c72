"""Fetch the tests of the installed transformers from its source distribution: python fetch.py FOLDER."""

import subprocess
import sys
import tarfile
from pathlib import Path

import transformers


def main(folder: Path) -> None:
    version = transformers.__version__
    if (folder / f"transformers-{version}" / "tests").is_dir():
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-binary", "transformers", "--dest", folder, f"transformers=={version}"], check=True)
    with tarfile.open(folder / f"transformers-{version}.tar.gz") as archive:
        wanted = [member for member in archive if member.name.startswith(f"transformers-{version}/tests/")]
        archive.extractall(folder, wanted, filter="data")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
