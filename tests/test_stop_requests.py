"""Signals that ask a run to stop; the terminal is a real one, and is closed."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from detector.stop_requests import stop_requests

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hang_up():
    """Return a function that sets what SIGHUP does; whoever runs the tests may ignore it, or end by it."""
    previous = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_listed_and_ends_nothing(number, hang_up):
    unexpected, notes = [], []

    def before(number, frame):
        unexpected.append(number)

    hang_up(before)
    with stop_requests(notes.append) as requested:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert list(requested) == [number, number] and not unexpected
    assert notes == ["stopping: what is under way is finished and saved first"]
    assert signal.getsignal(signal.SIGHUP) is before


def test_under_nohup_a_closed_terminal_stops_nothing(hang_up):
    hang_up(signal.SIG_IGN)
    with stop_requests(print) as requested:
        os.kill(os.getpid(), signal.SIGHUP)
    assert not requested


def test_what_is_said_to_a_closed_terminal_is_lost_and_the_rest_is_done(tmp_path):
    code = f"""
        import fcntl, signal, sys, termios, time
        sys.path.insert(0, {str(ROOT)!r})
        from detector.lasting_output import lasting_output
        from detector.stop_requests import stop_requests
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # it is the terminal's, and hears when that is closed
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with lasting_output():
            with stop_requests(lambda text: print(text, flush=True)) as requested:
                print("ready", flush=True)
                deadline = time.monotonic() + 60
                while not requested and time.monotonic() < deadline:
                    time.sleep(0.01)
            print("on the way out", flush=True)
            print("here, too", file=sys.stderr, flush=True)
        open({str(tmp_path / "saved")!r}, "w").write(str(list(map(int, requested))))
        sys.exit(129)
    """
    ours, its = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    try:
        assert os.read(ours, 100).strip() == b"ready"
    finally:
        os.close(ours)
    assert process.wait(60) == 129
    assert (tmp_path / "saved").read_text() == f"[{int(signal.SIGHUP)}]"


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(5, "Input/output error"), RuntimeError("reentrant call")]
)
def test_a_signal_counts_whether_or_not_it_can_be_said(error):
    def fails(text):
        raise error

    with stop_requests(fails) as requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested == [signal.SIGTERM]
