"""Small changes to tango/, one at a time, and whether the tests notice: `make mutate`, docs/mutation.md.

    python scripts/mutate.py collect [files of tests]  # which test runs which line; of these, or of those not yet known
    python scripts/mutate.py run [ids]                 # the changes that a seed draws; goes on where it was stopped
    python scripts/mutate.py check                     # the tests that noticed one pass on the code as it is
    python scripts/mutate.py table                     # counts and survivors

Each change is made in a copy of the tree below build/mutation/, one for each worker. Tests start in forks of a process
that has imported what takes long (torch, transformers) but nothing of tango/. Linux, CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import coverage
import pytest
from mutants import mutants_of

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutation"
FOLDERS = ("ops", "pruners", "models", "inference", "runs")
# The mirrored folders, and what else is mostly about them.
TESTS = [f"tests/{name}/test_*.py" for name in (*FOLDERS, "live", "reliability")]
TESTS += [f"tests/test_{name}.py" for name in ("golden", "pruners", "properties")]
LIMIT = 120  # seconds that a batch of tests has beside five times what its tests took
MEMORY = 12 << 30  # bytes of address space, four times what tests take: a change may ask for any number
QUICK = 30  # tests that are tried first: slower ones, and what they import, wait
IMPORTED = (
    "numpy", "av", "PIL.Image", "hypothesis.strategies", "torch._dynamo", "torchvision.transforms.v2", "transformers",
    "transformers.models.llava_onevision.modeling_llava_onevision", "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2.modeling_qwen2",
)  # fmt: skip
Job = tuple[Any, Callable[[Path], int]]  # what it is about, and what a fork does in a tree; 0: all passed


class Watch:
    """A plugin of pytest: how long each test takes, which lines it runs, and which tests fail."""

    def __init__(self, note: Path, measured: coverage.Coverage | None = None) -> None:
        self.note, self.measured = note, measured
        self.seconds: Counter[str] = Counter()
        self.imports: dict[str, float] = {}
        self.failed: list[tuple[str, str]] = []

    def switch(self, context: str) -> None:
        if self.measured:
            self.measured.switch_context(context)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        self.switch(collector.nodeid.split("::")[0])
        start = time.perf_counter()
        report = yield
        if isinstance(collector, pytest.Module):
            self.imports[collector.nodeid] = time.perf_counter() - start
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.switch(item.nodeid)
        try:
            return (yield)
        finally:  # fixtures are shared: what they run counts for all tests of the file
            self.switch(item.nodeid.split("::")[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed or (report.skipped and report.when != "teardown"):
            self.seconds[report.nodeid] = float("inf")  # of no use
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed.append((report.nodeid, (crash.message if crash else str(report.longrepr))[:300]))

    def pytest_sessionfinish(self) -> None:
        useful = {test: round(time, 3) for test, time in self.seconds.items() if time < float("inf")}
        self.note.write_text(json.dumps({"seconds": useful, "imports": self.imports, "failed": self.failed}))


def pytest_in(tree: Path, words: list[str], watch: Watch, limit: int) -> int:
    """The exit status of pytest, in a fork of its own that ends after `limit` seconds, its memory limited."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(limit)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    log = os.open(watch.note.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.chdir(tree)
    places = [str(tree), str(tree / "lmms-eval"), str(tree / "VLMEvalKit")]
    sys.path[:1], sys.argv = places, ["pytest"]
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
    os._exit(pytest.main([*words, "--tb=short", "-p", "no:cacheprovider"], plugins=[watch]))


def in_forks(jobs: list[Job], workers: int) -> Iterator[tuple[Any, int, float]]:
    """Work off the jobs in copies of the tree: what each is about, its exit status and the seconds it took."""
    trees, running = [copy_of_the_tree(number) for number in range(workers)], {}
    waiting = jobs[::-1]
    try:
        while waiting or running:
            while waiting and trees:
                about, work = waiting.pop()
                tree = trees.pop()
                child = os.fork()
                if child == 0:
                    os.setsid()
                    os._exit(work(tree) % 256)
                running[child] = about, tree, time.monotonic()
            child, status = os.wait()
            about, tree, start = running.pop(child)
            with contextlib.suppress(ProcessLookupError):  # what its tests left behind
                os.killpg(child, signal.SIGKILL)
            trees.append(tree)
            yield about, os.waitstatus_to_exitcode(status), time.monotonic() - start
    finally:
        for child in running:
            os.killpg(child, signal.SIGKILL)
        shutil.rmtree(WORK / f"trees-{os.getpid()}")


def copy_of_the_tree(number: int) -> Path:
    """What git knows or would add, compiled."""
    tree = WORK / f"trees-{os.getpid()}" / str(number)
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, tree / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "tango", "tests"], cwd=tree, check=True)
    return tree


def collect(files: list[str], workers: int) -> None:
    """Notes for each file of tests in build/mutation/tests/: what its tests take, and the lines they run."""
    every = sorted(str(path.relative_to(ROOT)) for pattern in TESTS for path in ROOT.glob(pattern))
    wanted = files or [name for name in every if not note_of(name).exists()]
    for name, status, seconds in in_forks(
        [(name, lambda tree, name=name: measure(tree, name)) for name in wanted], workers
    ):
        print(f"{name}: exit status {status}, {seconds:.0f} s", flush=True)


def note_of(name: str) -> Path:
    return WORK / "tests" / f"{name.replace('/', '.')}.json"


def measure(tree: Path, name: str) -> int:
    """Runs a file of tests under coverage, also in what its tests start, and writes its note."""
    data, note = WORK / "data" / note_of(name).stem, WORK / "data" / note_of(name).name
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    settings = f"[run]\nsource = {tree / 'tango'}\ndata_file = {data / 'data'}\nparallel = true\n"
    (data / "rc").write_text(settings + "context = ${PYTEST_CURRENT_TEST-}\n")
    os.environ["COVERAGE_PROCESS_START"] = str(data / "rc")
    measured = coverage.Coverage(
        data_file=str(data / "data"), data_suffix=True, source=[str(tree / "tango")], config_file=False
    )
    measured.start()
    watch = Watch(note, measured)
    watch.pytest_unconfigure = lambda: (measured.stop(), measured.save())
    status = pytest_in(tree, [name], watch, 3600)
    lines: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for path in data.glob("data.*"):
        held = coverage.CoverageData(basename=str(path))
        held.read()
        for file in held.measured_files():
            for line, contexts in held.contexts_by_lineno(file).items():
                for context in contexts:
                    test, phase = re.fullmatch(r"(.*?)(?: \((call|setup|teardown)\))?", context, re.DOTALL).groups()
                    test = test if phase in (None, "call") else test.split("::")[0]
                    lines[test or name][str(Path(file).relative_to(tree))].add(line)
    found = {test: {file: sorted(run) for file, run in files.items()} for test, files in lines.items()}
    note_of(name).parent.mkdir(exist_ok=True)
    note_of(name).write_text(json.dumps(json.loads(note.read_text()) | {"lines": found}))
    return status


def run(ids: list[str], workers: int, count: int, seed: int, enough: int) -> None:
    """Appends a line to build/mutation/results.jsonl for each change that has none yet, or for these."""
    drawn = WORK / "drawn.json"
    if not drawn.exists():
        drawn.write_text(json.dumps(draw(count, seed), indent=1))
    tests, done = Tests(), {line["id"] for line in results()}
    mutants = [
        one for one in json.loads(drawn.read_text()) if (str(one["id"]) in ids if ids else one["id"] not in done)
    ]
    jobs = [(one, lambda tree, one=one: attempt(tree, one, tests.of(one, enough))) for one in mutants]
    for mutant, _, seconds in in_forks(jobs, workers):
        found = mutant | json.loads((WORK / f"{mutant['id']}.json").read_text()) | {"seconds": round(seconds, 1)}
        with (WORK / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{mutant['id']} {found['outcome']}, {mutant['path']}:{mutant['line']}, {found['by']}", flush=True)


def results() -> list[dict[str, Any]]:
    path = WORK / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def draw(count: int, seed: int) -> list[dict[str, Any]]:
    """As many of each folder: first a line, then a kind of change, then one of these."""
    chosen = []
    for folder in FOLDERS:
        choice, lines = random.Random(f"{seed} {folder}"), defaultdict(lambda: defaultdict(list))
        for path in sorted((ROOT / "tango" / folder).glob("*.py")):
            for one in mutants_of(path, ROOT):
                lines[one["path"], one["line"]][one["kind"]].append(one)
        possible = sum(len(some) for kinds in lines.values() for some in kinds.values())
        print(f"{folder}: {possible} changes are possible in {len(lines)} lines", flush=True)
        some = choice.sample(list(lines.values()), count // len(FOLDERS))
        chosen += [choice.choice(kinds[choice.choice(list(kinds))]) for kinds in some]
    random.Random(seed).shuffle(chosen)
    return [{"id": number} | mutant for number, mutant in enumerate(chosen)]


class Tests:
    """Which tests run which lines, of all notes."""

    def __init__(self) -> None:
        notes = [json.loads(path.read_text()) for path in (WORK / "tests").glob("*.json")]
        self.imports = {file: seconds for note in notes for file, seconds in note["imports"].items()}
        self.seconds = {test: seconds for note in notes for test, seconds in note["seconds"].items()}
        self.lines = {
            context: {path: set(run) for path, run in files.items()}
            for note in notes
            for context, files in note["lines"].items()
        }

    def of(self, mutant: dict[str, Any], enough: int) -> list[tuple[int, list[str]]]:
        """Batches of the tests that run a change, each with a limit in seconds; all in all `enough` seconds of them.

        Those that run it themselves come first; of these the mirrored folder's and its own file's; then the quickest.
        """
        path, span = mutant["path"], range(mutant["span"][0], mutant["span"][1] + 1)
        contexts = {context for context, files in self.lines.items() if not files.get(path, set()).isdisjoint(span)}
        # What coverage cannot see, such as a trace function in its place, is left to those that run the file.
        contexts = contexts or {context for context, files in self.lines.items() if path in files}
        folder, own = Path(path).parent.name, f"/test_{Path(path).stem}"
        near = (f"tests/{folder}/", f"tests/test_{folder}.py")

        def order(test: str) -> tuple[bool, bool, bool, float]:
            cost = self.seconds[test] + self.imports[test.split("::")[0]]
            return test not in contexts, not test.startswith(near), own not in test, cost

        chosen = sorted((test for test in self.seconds if {test, test.split("::")[0]} & contexts), key=order)
        spent = accumulate(self.seconds[test] for test in chosen)
        chosen = [test for test, seconds in zip(chosen, spent, strict=True) if seconds < enough or test == chosen[0]]
        batches = chosen[:QUICK], chosen[QUICK:]
        return [(LIMIT + int(5 * sum(self.seconds[test] for test in batch)), batch) for batch in batches if batch]


def attempt(tree: Path, mutant: dict[str, Any], batches: list[tuple[int, list[str]]]) -> int:
    """Makes a change in a tree, runs tests until one fails, takes the change back, and writes what came of it."""
    path, note, status = tree / mutant["path"], WORK / f"{mutant['id']}.json", 0
    before, times = path.read_bytes(), path.stat()
    lines, old = before.decode().split("\n"), mutant["before"].split("\n")
    found = [
        at for at in range(len(lines)) if lines[at : at + len(old)] == old
    ]  # code may have moved since it was drawn
    start = min(found, key=lambda at: abs(at + 1 - mutant["line"]))
    lines[start : start + len(old)] = [mutant["after"]]
    path.write_text("\n".join(lines), encoding="utf-8")
    os.utime(path, (times.st_atime, times.st_mtime + 1 + mutant["id"]))  # what was compiled before is of no use
    for limit, batch in batches:
        note.unlink(missing_ok=True)
        status = pytest_in(tree, ["-x", *batch], Watch(note), limit)
        if status:
            break
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    outcome = {0: "survived", -signal.SIGALRM: "timeout"}.get(status, "caught")
    failed = json.loads(note.read_text())["failed"] if note.exists() else []
    by, why = failed[0] if failed else ("", f"exit status {status}" if status else "")
    note.write_text(
        json.dumps({"outcome": outcome, "tests": sum(len(batch) for _, batch in batches), "by": by, "why": why})
    )
    return 0


def check(workers: int) -> None:
    """The tests that noticed a change must pass without one."""
    noticed = defaultdict(set)
    for line in results():
        if "::" in line["by"]:
            noticed[line["by"].split("::")[0]].add(line["by"])
    jobs = [
        (file, lambda tree, tests=tests: pytest_in(tree, [*tests], Watch(WORK / "check.json"), 3600))
        for file, tests in noticed.items()
    ]
    for file, status, _ in in_forks(jobs, workers):
        print(f"{file}: {len(noticed[file])} tests, exit status {status}", flush=True)


def table() -> None:
    """Counts by folder and the survivors, in Markdown; the last line of a change counts."""
    last = {line["id"]: line for line in results()}
    first = {line["id"]: line for line in reversed(results())}
    print("| Folder | Changes | Caught | Timeout | Survived | Caught at first |\n|---|---:|---:|---:|---:|---:|")
    for folder in (*FOLDERS, ""):
        of_it = [line for line in last.values() if line["path"].startswith(f"tango/{folder}")]
        counts = Counter(line["outcome"] for line in of_it)
        gone = counts["survived"]
        at_first = sum(first[line["id"]]["outcome"] in ("caught", "timeout") for line in of_it)
        print(f"| {folder or 'all'} | {len(of_it)} | {counts['caught']} | {counts['timeout']} | {gone} | {at_first} |")
    for number, line in sorted(first.items()):
        if line["outcome"] == "survived":
            now = last[number]
            print(f"\n{number} {line['path']}:{line['line']} {line['kind']}; {line['outcome']},", end=" ")
            print(f"now {now['outcome']} {now['by']}\n-{line['before']}\n+{line['after']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("collect", "run", "check", "table"))
    parser.add_argument("names", nargs="*", help="files of tests to collect, or ids of changes to run again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="of tests that a change must survive")
    asked = parser.parse_intermixed_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if asked.command == "table":
        return table()
    for name in IMPORTED:
        importlib.import_module(name)
    if asked.command == "collect":
        return collect(asked.names, asked.workers)
    if asked.command == "run":
        return run(asked.names, asked.workers, asked.count, asked.seed, asked.seconds)
    return check(asked.workers)


if __name__ == "__main__":
    main()
