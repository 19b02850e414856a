"""The worker protocol, with workers of a few lines that answer rightly, wrongly, or not at all."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from detector.benchmark.process import WorkerError, WorkerProcess

SPEC = {"kind": "train", "batch_size": 2}


@pytest.fixture
def worker(tmp_path):
    """Return a function from Python code to a started worker; `ask()` and `say()` are there for it."""
    started = []

    def start(code):
        script = tmp_path / "worker.py"
        script.write_text(
            textwrap.dedent("""
            import json, os, sys, time
            ask = lambda: json.loads(sys.stdin.readline())
            say = lambda **values: print(json.dumps(values), flush=True)
            """)
            + textwrap.dedent(code)
        )
        started.append(WorkerProcess("peer", [sys.executable, str(script)], SPEC))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_a_peer_is_asked_and_ends(worker):
    process = worker("""
        spec = ask()
        assert spec["kind"] == "train" and 0 <= time.monotonic() - spec["started_at"]
        print("a library says hello")
        say(ready=True, first_step_seconds=3.5)
        for _ in range(2):
            n = ask()["run"]
            say(seconds=[0.25 * n] * n)
        assert "quit" in ask()
        say(peak_memory_bytes=12345, flops=7e9)
    """)
    ready = process.readiness
    # Without a word about it, a repetition is on one batch.
    assert (ready.first_step_seconds, ready.images, ready.import_seconds) == (3.5, 2, None)
    assert process.run(2) == [0.5, 0.5]
    assert process.run(4) == [1.0] * 4
    farewell = process.finish()
    assert (farewell.peak_memory_bytes, farewell.flops) == (12345, 7e9)


def test_this_packages_side_of_the_protocol(worker):
    process = worker("""
        from detector.benchmark.worker import Prepared, serve
        assert "tensorflow" not in sys.modules
        done, clock = [], [0.0]
        time.perf_counter = lambda: clock[0]
        def prepare(spec):
            assert spec["kind"] == "train"
            clock[0] += 100  # making data does not count
            return start
        def start():
            clock[0] += 10
            say(first_step_seconds=77)  # to standard output, where it would pass for an answer
            return Prepared(repeat, 5, lambda: 4.0 * len(done))
        def repeat():
            clock[0] += 1
            done.append(None)
            return None if len(done) == 1 else float(len(done))
        serve(prepare)
    """)
    ready = process.readiness
    assert (ready.images, ready.start_seconds, ready.first_step_seconds) == (5, 11.0, 1.0)
    assert ready.import_seconds > 0
    assert process.run(3) == [2.0, 3.0, 4.0]
    farewell = process.finish()
    assert farewell.flops == 16.0
    assert 2**22 < farewell.peak_memory_bytes < 2**28


def test_its_own_mistake_is_told_in_its_words(worker):
    with pytest.raises(WorkerError, match=r"^peer: freeze selector 'rpm' matches nothing$"):
        worker("""
            from detector.benchmark.worker import serve
            def prepare(spec):
                raise ValueError("freeze selector 'rpm' matches nothing")
            serve(prepare)
        """)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('out of memory', file=sys.stderr); sys.exit(9)", r"exit code 9 (.|\n)*\n  out of memory"),
        ("say(error='no GPU')", "peer: no GPU"),
        ("say(ready=True)", 'expected an answer with "first_step_seconds"'),
        ("say(first_step_seconds='soon')", "expected a number from 0 .* got 'soon'"),
        ("print('{nonsense', flush=True)", "expected a line of JSON, got '{nonsense'"),
    ],
)
def test_a_peer_that_does_not_start_says_why(code, message, worker):
    with pytest.raises(WorkerError, match=message):
        worker(f"ask(); {code}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os._exit(3)", 'ended with exit code 3 instead of answering {"run": 2}'),
        ("say(seconds=[1.0])", "expected 2 numbers"),
        ("say(seconds=[1.0, 0.0])", "expected times above 0"),
    ],
)
def test_a_peer_that_fails_in_a_round_says_why(code, message, worker):
    process = worker(f"ask(); say(first_step_seconds=1); ask(); {code}")
    with pytest.raises(WorkerError, match=message):
        process.run(2)


def test_a_command_that_is_none():
    with pytest.raises(WorkerError, match="cannot start '/no/such/worker'"):
        WorkerProcess("peer", ["/no/such/worker"], SPEC)


def state_of(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split()[2]
    except OSError:
        return "gone"


def test_killing_ends_what_the_worker_started_and_its_files(worker):
    process = worker("""
        import subprocess, tempfile
        child = subprocess.Popen(["sleep", "60"])
        spec = ask()
        folder = tempfile.mkdtemp()
        say(first_step_seconds=child.pid, start_seconds=1, images=0)
        open(os.path.join(folder, "left"), "w").close()
        time.sleep(60)
    """)
    child = int(process.readiness.first_step_seconds)
    folder = process._folder.name
    assert os.listdir(folder)
    process.kill()
    assert not os.path.exists(folder)
    deadline = time.monotonic() + 20
    while state_of(child) not in ("gone", "Z"):  # Z: dead, and waiting to be asked for its exit code
        assert time.monotonic() < deadline, f"the child lives on: {state_of(child)}"
        time.sleep(0.05)


def test_the_peak_is_this_process_own_and_stays():
    code = """
from detector.benchmark.worker import peak_memory_bytes
before = peak_memory_bytes()
block = bytearray(64 * 2**20)
block[:: 2**12] = b"x" * len(block[:: 2**12])
grown = peak_memory_bytes()
del block
print(before, grown, peak_memory_bytes())
"""
    before, grown, after = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    # This process, which started it, has more than all of that.
    assert before < 2**28
    # The kernel counts in steps: to 1 MB it is the block, and what was stays.
    assert grown - before == pytest.approx(2**26, abs=2**20) and after == pytest.approx(grown, abs=2**20)
