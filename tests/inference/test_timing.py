"""Where the time of generate() is counted, and that nothing of the measuring stays behind."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StoppingCriteriaList

from tango.inference.checkpoints import load
from tango.inference.timing import Clock, GenerationTimer, StopAt, added, peak_memory
from tango.models import family_of


class Ticks(Clock):
    """A clock that advances by one second each time it is looked at."""

    def __init__(self) -> None:
        super().__init__([])
        self.now = 0.0

    def mark(self) -> float:
        self.now += 1
        return self.now


class Toy(nn.Module):
    """Calls its parts in the order a video language model does; each of its ways takes known looks at the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.language = nn.Linear(2, 2), nn.Linear(2, 2)
        self.vision = nn.Sequential(self.inner)

    def generate(self, tokens: int, stopping_criteria: Any) -> None:
        x = self.vision(torch.zeros(1, 2))
        for i in range(tokens):
            self.language(x)
            stopping_criteria(torch.zeros(1, i + 1, dtype=torch.long), None)


def test_time_goes_where_it_was_spent() -> None:
    toy = Toy()
    timer = GenerationTimer(toy, [toy.vision, toy.inner], toy.language)
    timer.clock = Ticks()
    with timer:
        timer.start()
        toy.generate(3, timer)
        timing = timer.stop()
    # Looks: start 1, vision in 2, inner in 3, vision out 4, prefill 5, tokens 6 7 8, end 9.
    assert timing.vit_s == 2 and timing.other_s == 5 - 1 - 2 and timing.prefill_s == 1
    assert timing.decode_s == 2 and timing.generate_s == 8 and timing.new_tokens == 3
    assert not toy.vision._forward_hooks and not toy.language._forward_pre_hooks


def test_a_failed_call_does_not_spoil_the_next() -> None:
    toy = Toy()
    with GenerationTimer(toy, [toy.vision], toy.language) as timer:
        timer.start()
        with pytest.raises(RuntimeError):
            toy.vision(torch.zeros(1, 3))
        timer.start()
        toy.generate(2, timer)
        assert timer.stop().new_tokens == 2
        timer.start()
        with pytest.raises(RuntimeError, match="never called the language model and made 0 tokens"):
            timer.stop()


def test_parts_of_a_real_model_add_up_and_answers_stay(checkpoint: Path) -> None:
    loaded = load(str(checkpoint))
    model, family = loaded.model, family_of(loaded.model)
    inputs = {"input_ids": torch.arange(5, 15)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    start = time.perf_counter()
    with GenerationTimer(model, family.vision_modules(model), family.language_model(model)) as timer:
        timer.start()
        timed = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, stopping_criteria=StoppingCriteriaList([timer])
        )
        timing = timer.stop()
    assert torch.equal(plain, timed)
    assert timing.vit_s == 0 and timing.new_tokens == timed.shape[1] - 10
    parts = timing.vit_s + timing.other_s + timing.prefill_s + timing.decode_s
    assert 0 < parts <= timing.generate_s <= time.perf_counter() - start


def test_peak_memory_is_what_the_system_says() -> None:
    """On Linux, where it says so in text too: the peak of what was resident, in KiB."""
    before = peak_memory()
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert told is not None and 0.9 * before <= int(told[1]) / 2**20 <= 1.1 * peak_memory()


def test_stop_at_cuts_where_a_string_begins() -> None:
    letters = "abcdefgh\n"
    stop = StopAt(lambda ids: "".join(letters[i] for i in ids), ["cd", "\n", ""])
    assert stop.until == ["cd", "\n"]
    assert stop(torch.tensor([[7, 7, 0], [7, 7, 2]])).tolist() == [False, False]
    assert stop(torch.tensor([[7, 7, 0, 1], [7, 7, 2, 3]])).tolist() == [False, True]
    assert stop.cut("abcdab") == "ab" and stop.cut("ab") == "ab" and stop.cut("a\nbcd") == "a"


def test_seconds_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 5.0, 7.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    seconds = {"resize_s": 1.0}
    for _ in range(2):
        with added(seconds, "read_s"):
            pass
    assert seconds == {"resize_s": 1.0, "read_s": 3.5}
