"""How busy a machine is, against processes that make it so."""

import json
import os
import subprocess
import sys
import time

import pytest

from tango.runs import load
from tango.runs.load import Load, busy, cores, load_text

# Two rivals are known to run on the one core before this thread spins there for two seconds. A process of its own, for
# encoders of video leave a process of root with the scheduling of real time, in which it waits for nobody.
BESIDE_RIVALS = """
import json, os, subprocess, sys, time
from tango.runs.load import Load
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
command = [sys.executable, "-c", "print(flush=True)\\nwhile True: pass"]
rivals = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
try:
    for rival in rivals:
        rival.stdout.readline()
    noting, begun, used = Load(), time.perf_counter(), time.thread_time()
    while time.perf_counter() - begun < 2:
        pass
    had = (time.thread_time() - used) / (time.perf_counter() - begun)
    print(json.dumps([had, noting.noted()]))
finally:
    for rival in rivals:
        rival.kill()
"""


@pytest.mark.skipif(load._waited() is None, reason="this system does not tell")
def test_waiting_is_the_time_that_a_thread_did_not_have() -> None:
    """Against the thread's own clock."""
    done = subprocess.run([sys.executable, "-c", BESIDE_RIVALS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    had, noted = json.loads(done.stdout)
    assert noted["waited"] == pytest.approx(1 - had, abs=0.15) and noted["waited"] > 0.1
    assert busy(noted) and f"{100 * noted['waited']:.0f} % of the time waiting for a core" in load_text(noted)


def test_a_thread_that_sleeps_does_not_wait() -> None:
    for _ in range(20):  # on a busy machine it may have to wait for its core when it wakes up
        noting = Load()
        time.sleep(1.0)
        noted = noting.noted()
        if noted["waited"] is None or noted["waited"] < 0.3:
            break
    else:
        pytest.fail(f"{noted['waited']:.0%} of each second")
    assert noted["cores"] == len(os.sched_getaffinity(0)) and noted["start"] >= 0 and noted["end"] >= 0


def test_what_is_busy() -> None:
    quiet = {"start": 0.1, "end": 2.0, "cores": 2, "waited": 0.01}
    assert not busy(quiet) and busy(quiet | {"waited": 0.2})
    assert not busy(quiet | {"waited": None}) and busy(quiet | {"waited": None, "end": 14.2})
    assert not busy({"start": None, "end": None, "cores": 8, "waited": None})
    assert load_text(quiet) == "load 0.1 to 2.0 on 2 cores, 1 % of the time waiting for a core"
    assert load_text({"start": None, "end": None, "cores": 8, "waited": None}) == "load ? to ? on 8 cores"


def test_a_core_awaited_for_more_than_a_twentieth_of_the_time_is_busy() -> None:
    noted = {"start": 0.0, "end": 0.0, "cores": 2}
    assert not busy(noted | {"waited": 0.05}) and busy(noted | {"waited": 0.051})


def test_the_load_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the three averages that a system has; those of 5 and 15 minutes remember what ran before."""
    averages = iter([(1.5, 7.0, 8.0), (2.5, 7.0, 8.0)])
    monkeypatch.setattr(os, "getloadavg", lambda: next(averages))
    noted = Load().noted()
    assert (noted["start"], noted["end"]) == (1.5, 2.5)


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_load_average", lambda: None)
    monkeypatch.setattr(load, "_waited", lambda: None)
    assert Load().noted() == {"start": None, "end": None, "cores": cores(), "waited": None}
