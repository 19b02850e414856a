import os
import sys

import pytest

from detector import progress
from detector.progress import Progress

LOSS = {"loss": 1.0}


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose last entry is the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[-1])
    return now


def test_rates_are_over_the_steps_after_the_first(clock):
    shown = Progress(start=0, steps=10, batch_size=4, log_every=100, bar=False)
    for step, (end, waited) in enumerate([(9.0, 8.0), (10.0, 0.5), (11.0, 0.1)], start=1):
        assert shown.rates() == {} or step > 2
        clock.append(end)
        shown.advance(step, LOSS, waited)
    assert shown.rates() == {"images_per_second": 4.0, "input_share": pytest.approx(0.3)}


def test_what_is_noted_is_not_counted(clock):
    shown = Progress(start=0, steps=10, batch_size=1, log_every=100, bar=False)
    for step, end in enumerate([1.0, 2.0], start=1):
        clock.append(end)
        shown.advance(step, LOSS, 1.0)
    shown.note("evaluated")
    assert shown.rates() == {}


@pytest.mark.parametrize("bar", [True, False])
def test_steps_are_shown_on_though_nobody_reads(bar, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        with Progress(start=0, steps=2, batch_size=1, log_every=1, bar=bar) as shown:
            shown.show("tracing the graph")
            shown.note("a note")
            shown.advance(1, LOSS, 0.0)
            shown.advance(2, LOSS, 0.0)


@pytest.mark.parametrize(("waited", "is_said"), [(0.05, False), (0.25, True)])
def test_steps_that_wait_for_images_say_so(clock, capsys, waited, is_said):
    shown = Progress(start=0, steps=3, batch_size=1, log_every=1, bar=False)
    for step in (1, 2):
        clock.append(clock[-1] + 1.0)
        shown.advance(step, LOSS, waited)
    assert ("25% of the time waiting for images" in capsys.readouterr().out) == is_said
