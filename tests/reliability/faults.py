"""The table in docs/reliability.md, made of what the tests of faults observed (see conftest.py)."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data/motionqa/videos/0.mp4"
HEAD = """# Bad input and faults

What happens when files, settings or the machine are not as they should be. Each row is a test in
`tests/reliability/` that causes the fault. The third column is the message that the test saw, word for word, with paths
shortened. What people tried by hand is at the end, under "Tried by strangers".
Made by `FAULTS=docs/reliability.md python -m pytest tests/reliability`.

No run is lost to one of these: each sample is on disk before the next one starts, results are written whole or not at
all, and the same command goes on where it was stopped.

Which tokens are kept does not depend on the number of threads, the rest of the batch, the order of videos,
torch's default dtype or the CPU's instruction set (below, "The same numbers twice": every method on tango-tiny).
Whatever changes the features may change the kept tokens too: the model's dtype, its attention kernel, a GPU
in place of a CPU. Each cell.json names these.

Exit codes of `tango`: 0 success, 1 something failed, 2 bad input, 130 interrupted.

[Mutation](mutation.md) says whether the tests notice faults in the code itself.
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
