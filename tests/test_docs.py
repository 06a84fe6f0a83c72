"""Every code block of README.md, CONTRIBUTING.md and docs/ is run, or checked where a comment says why it can't be.

Python runs as it stands. Bash is read by bash itself, with every command replaced by one that only notes down its
words, variables and folder; then the commands are run one by one. After `<!-- not run: why -->` they are checked
instead: the command exists, its flags parse, the files it names are there.
"""

import argparse
import functools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import accelerate.commands.launch
import pytest
import torch.distributed.run
import typer
import yaml
from markdown_it import MarkdownIt

from tango.cli import app, main
from tango.runs.settings import VARIABLES, from_environment

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LIMIT = 600  # seconds, for a command that is run; on an idle machine all of them together take a tenth of that
FOLDERS = ("VLMEvalKit", "lmms-eval")  # their commands are started in these


@dataclass(frozen=True)
class Block:
    """A code block; reason: why it is not run, if a comment before it says so."""

    place: str
    language: str
    source: str
    reason: str | None


@dataclass(frozen=True)
class Command:
    """A command that bash would have started: its words, in which folder, with which of the plugins' variables."""

    words: tuple[str, ...]
    folder: Path
    variables: dict[str, str]


def blocks_of(page: Path) -> list[Block]:
    found, reason = [], None
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            place = f"{page.relative_to(ROOT)}:{token.map[0] + 1}"
            found.append(Block(place, token.info.strip(), token.content, reason))
        marker = re.fullmatch(r"<!-- not run: (.+) -->", token.content.strip()) if token.type == "html_block" else None
        reason = marker[1] if marker else None
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(language: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=[block.place for block in chosen])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, as links, to run commands in; what they write stays out of this one."""
    tree = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name not in ("build", *FOLDERS):
            (tree / entry.name).symlink_to(entry)
    for name in FOLDERS:  # real folders, so that `..` leads back here
        (tree / name).mkdir()
        for entry in (ROOT / name).iterdir():
            if entry.name not in ("logs", "outputs"):
                (tree / name / entry.name).symlink_to(entry)
    return tree


def test_blocks_say_what_they_are() -> None:
    wrong = [
        f"{block.place}: {block.language or 'no language'}"
        for block in BLOCKS
        if block.language not in ("python", "bash", "yaml", "text")
    ]
    assert not wrong, "fence each block and name its language, python, bash, yaml or text"
    assert {block.place.split(":")[0] for block in BLOCKS if block.language == "python"} >= {"README.md"}
    assert all(yaml.safe_load(block.source) for block in BLOCKS if block.language == "yaml")
    excused = [block.place for block in BLOCKS if block.reason and block.language != "bash"]
    assert not excused, "only bash may be left out"


@of("python")
def test_python(block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.source, block.place, "exec"), {"__name__": "__main__"})
    if block.place.startswith("README.md"):
        before, after = re.search(r"(\d+) -> (\d+) video tokens", capsys.readouterr().out).groups()
        assert int(before) == 512 and 51 <= int(after) <= 75


@of("bash")
def test_bash(block: Block, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    commands = noted(block.source, tree)
    assert commands, f"{block.place}: no command in it"
    for command in commands:
        monkeypatch.chdir(command.folder)
        with monkeypatch.context() as patch:
            for name, value in command.variables.items():
                patch.setenv(name, value)
            try:
                (run if block.reason is None else check)(command.words)
            except (SystemExit, typer.exceptions.TyperException) as error:
                raise AssertionError(f"{block.place}: {shlex.join(command.words)}: {error}") from error


def noted(source: str, tree: Path) -> list[Command]:
    """The commands of a bash block. Functions stand in for them, so loops, variables and cd are bash's own."""
    notes = tree / "notes"
    values = " ".join(f'"${{{name}-}}"' for name in VARIABLES)
    note = f'note() {{ printf "%s\\0" "$PWD" {values} "$@" >>"$NOTES"; echo >>"$NOTES"; }}'
    names = [entry.name for entry in BIN.iterdir() if re.fullmatch(r"[\w.-]+", entry.name)]
    stand_ins = [
        f'{name}() {{ note {name} "$@"; }}' for name in sorted({*names, "bash", "git", "make", "sbatch"} - {"activate"})
    ]
    notes.write_text("")
    script = "\n".join(["set -eu", note, 'command_not_found_handle() { note "$@"; }', *stand_ins, "PATH=", source])
    environment = {"NOTES": str(notes), "HOME": str(tree)}
    done = subprocess.run(["/bin/bash", "-c", script], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = []
    for line in notes.read_text().split("\0\n")[:-1]:
        folder, *values_and_words = line.split("\0")
        values, words = values_and_words[: len(VARIABLES)], values_and_words[len(VARIABLES) :]
        variables = {name: value for name, value in zip(VARIABLES, values, strict=True) if value}
        found.append(Command(tuple(words), Path(folder), variables))
    return found


def run(words: tuple[str, ...]) -> None:
    """tango in this process, since that has imported what it needs; anything else by itself."""
    if words[0] == "tango":
        assert main(words[1:]) == 0
        return
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}\n{done.stderr}"


def check(words: tuple[str, ...]) -> None:
    """A command that is not run: it exists, and so do its flags, files and settings."""
    from_environment()
    name, rest = words[0], list(words[1:])
    if name == "tango":
        check_tango(rest)
    elif name == "make":
        said(("make", "--dry-run", *rest))
    elif name == "pip":
        check_pip(rest)
    elif name == "torchrun":
        launched = torch.distributed.run.get_args_parser().parse_args(rest)
        check_python(["-m"] * launched.module + [launched.training_script, *launched.training_script_args])
    elif name == "accelerate":
        assert rest.pop(0) == "launch"
        launched = accelerate.commands.launch.launch_command_parser().parse_args(rest)
        check_python(["-m"] * launched.module + [launched.training_script, *launched.training_script_args])
    elif name == "python":
        check_python(rest)
    elif name == "bash":
        check_script(rest)
    elif name == "sbatch":  # its own flags are not known here; after the script come those of `tango sweep`
        script = next(place for place, word in enumerate(rest) if not word.startswith("-"))
        said(("bash", "-n", rest[script]))
        check_tango(["sweep", *rest[script + 1 :]])
    else:
        split = next((i for i, word in enumerate(rest) if word.startswith("-") or "/" in word), len(rest))
        has_flags(rest[split:], said((name, *rest[:split], "--help")))


def check_tango(rest: list[str]) -> None:
    """Parsed as the command would, types and choices too, but not run."""
    group = typer.main.get_command(app)
    command = group.commands[rest[0]]
    context = command.make_context(rest[0], rest[1:])
    if context.args:  # tango demo hands them to the script
        check_python(["scripts/demo.py", *context.args])


def check_pip(rest: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("--no-deps", action="store_true")
    parser.add_argument("-r", action="append", default=[], type=Path)
    parser.add_argument("-e", action="append", default=[], type=Path)
    parser.add_argument("--target")
    parser.add_argument("package", nargs="*")
    asked = parser.parse_intermixed_args(rest)
    assert asked.r or asked.e or (asked.target and asked.package)  # nothing unpinned into the environment itself
    assert all(file.is_file() for file in asked.r) and all((folder / "pyproject.toml").is_file() for folder in asked.e)


def check_python(rest: list[str]) -> None:
    if rest[:2] == ["-m", "lmms_eval"]:  # importing it is most of what its --help takes
        from lmms_eval.__main__ import parse_eval_args

        before, sys.argv = sys.argv, ["lmms_eval", *rest[2:]]
        try:
            parse_eval_args()
        finally:
            sys.argv = before
        return
    if rest[:2] == ["-m", "tango.cli"]:
        check_tango(rest[2:])
        return
    words = 2 if rest[0] == "-m" else 1
    assert rest[0] == "-m" or Path(rest[0]).is_file(), f"no file {rest[0]}"
    has_flags(rest[words:], said((sys.executable, *rest[:words], "--help")))


def check_script(rest: list[str]) -> None:
    """The scripts of the plugins start Python; with echo for it they print what they would start."""
    environment = os.environ | {"PYTHON": "echo"}
    done = subprocess.run(["bash", *rest], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    started = [shlex.split(line) for line in done.stdout.splitlines()]
    assert started, f"{rest[0]} starts nothing"
    for words in started:
        check_python(words[words.index("-m") :])


def has_flags(words: list[str], text: str) -> None:
    flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
    unknown = [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text)]
    assert not unknown, f"no flag {', '.join(unknown)} in:\n{text}"


def said(words: tuple[str, ...]) -> str:
    """What a command prints that must end well."""
    return _said(words, os.getcwd())


@functools.cache
def _said(words: tuple[str, ...], folder: str) -> str:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}\n{done.stderr}"
    return done.stdout
