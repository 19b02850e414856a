import os
import signal

import pytest

from detector.stop_requests import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_listed_and_said_once(number):
    said = []
    before = signal.getsignal(number)
    with stop_requests(said.append) as requested:
        assert not requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert requested == [number, number]
    assert said == ["stopping: what is under way is finished and saved first"]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(5, "Input/output error"), RuntimeError("reentrant call")]
)
def test_a_signal_counts_whether_or_not_it_can_be_said(error):
    def fails(text):
        raise error

    with stop_requests(fails) as requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested == [signal.SIGTERM]
