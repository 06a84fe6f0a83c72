"""The table in docs/reliability.md, made of what the tests of faults observed (see conftest.py)."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data/motionqa/videos/0.mp4"
HEAD = """# Bad input and faults

What happens when files, settings or the machine are not as they should be. Each row is a test below
`tests/reliability/` that brings the fault about; the third column is what it then saw, word for word, with paths
shortened. What people tried by hand is at the end, under "Tried by strangers".
Made by `FAULTS=docs/reliability.md python -m pytest tests/reliability`.

A run is never lost to one of these: samples are on the disk one by one before the next one starts, cells of a sweep
are written whole or not at all, and what was stopped goes on where it was when it is started again.
Which tokens are kept does not depend on the number of threads, on what else is in the batch, on the order of videos, on
torch's default dtype or on the instructions of the processor (below, "The same numbers twice": every method on the
shipped model). What changes the features themselves may change them too: the model's dtype, its attention kernel, a GPU
in place of a CPU. Each cell.json names these.
Exit codes of `tango`: 0 all is well, 1 something failed, 2 bad input, 130 interrupted.

How much of a fault in the code itself the tests would notice: [Mutation](mutation.md).
"""
observed: dict[tuple[str, str, str], tuple[str, str]] = {}  # (group, case, injected) -> (what is seen, what is kept)


def table() -> str:
    lines = [HEAD]
    group = ""
    for (of, case, injected), (message, kept) in observed.items():
        if of != group:
            lines += [
                f"## {of}",
                "",
                "| case | how it is injected | what the user sees | what is kept |",
                "|---|---|---|---|",
            ]
            group = of
            lines = lines if len(lines) == 5 else [*lines[:-4], "", *lines[-4:]]
        shown = message if message.startswith("(") else "`" + message.replace("`", "'").replace("|", "/") + "`"
        lines.append(f"| {case} | {injected} | {shown} | {kept} |")
    return "\n".join(lines) + "\n"
