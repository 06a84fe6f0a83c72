"""How busy a machine was while something was timed on it: seconds of a busy machine say little about what was timed."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BUSY_WAIT = 0.05  # share of the time that a thread waited for a core
BUSY_LOAD = 1.5  # processes that wanted to run, for each core; a run alone takes about one core a thread


class Load:
    """Call `noted()` in the thread that made this."""

    def __init__(self) -> None:
        self._start, self._clock, self._waited = _load_average(), time.perf_counter(), _waited()

    def noted(self) -> dict[str, Any]:
        """start, end: the system's load average of a minute, then and now, None where it has none; cores: that this
        process may use; waited: share of the time between that this thread was ready and had no core, None where the
        system does not tell.
        """
        seconds, waited = time.perf_counter() - self._clock, _waited()
        known = self._waited is not None and waited is not None and seconds > 0
        share = min(1.0, (waited - self._waited) / seconds) if known else None  # type: ignore[operator]
        return {"start": self._start, "end": _load_average(), "cores": cores(), "waited": share}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy(load: Mapping[str, Any]) -> bool:
    """Whether what Load noted means that others took part of the machine."""
    if load["waited"] is not None:
        return bool(load["waited"] > BUSY_WAIT)
    return bool(max(load["start"] or 0.0, load["end"] or 0.0) > BUSY_LOAD * load["cores"])


def load_text(load: Mapping[str, Any]) -> str:
    """What Load noted, for people."""
    ends = " to ".join("?" if load[end] is None else f"{load[end]:.1f}" for end in ("start", "end"))
    waited = "" if load["waited"] is None else f", {100 * load['waited']:.0f} % of the time waiting for a core"
    return f"load {ends} on {load['cores']} cores{waited}"


def _load_average() -> float | None:
    with contextlib.suppress(OSError):
        return os.getloadavg()[0]
    return None


def _waited() -> float | None:
    """Seconds that this thread was ready to run and waited."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return None
