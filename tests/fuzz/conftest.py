"""Made-up files and texts against what reads them: the same few seconds of them in every run of the tests, minutes in

    make fuzz       # ten minutes in all; TANGO_FUZZ_SECONDS=60 make fuzz: one

A test asks for the fixture `fuzz` and calls it with a check and hypothesis' strategies for its arguments.
"""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis.strategies import SearchStrategy

SECONDS = float(os.environ.get("TANGO_FUZZ_SECONDS", 0))  # of all tests here together; 0: one short round of each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each of the tests here an equal share of the seconds."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents and "fuzz" in item.fixturenames]
    for item in ours:
        item.user_properties.append(("share", SECONDS / len(ours)))


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Call it as fuzz(check, examples=100, name=strategy, ..): check(name=..) must pass for all that is drawn.

    Rounds of so many examples are drawn from the seeds 0, 1, 2, .. until this test's share of TANGO_FUZZ_SECONDS is
    over, at least one. A failure ends with the smallest arguments that fail, and the seed is in its notes.
    """
    share = dict(request.node.user_properties)["share"]

    def run(check: Callable[..., None], examples: int = 100, **strategies: SearchStrategy) -> None:
        begun = time.monotonic()
        every = list(hypothesis.HealthCheck)  # slow examples and large ones are what files are
        chosen = hypothesis.settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=every, print_blob=False
        )
        for seed in itertools.count():
            try:
                hypothesis.seed(seed)(chosen(hypothesis.given(**strategies)(check)))()
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
            if time.monotonic() - begun >= share:
                break

    return run
