import pytest

from detector.benchmark import rounds as rounds_module
from detector.benchmark.process import Farewell, Readiness, WorkerError
from detector.benchmark.rounds import Turn, measure


class Worker:
    """Stands in for a process: writes down what it is asked."""

    def __init__(self, name, log, fails_at=None):
        self.name, self.log, self.turns, self.fails_at = name, log, 0, fails_at
        self.readiness = Readiness(None, None, 1.0, 1)
        log.append(f"start {name}")

    def run(self, repetitions):
        self.turns += 1
        self.log.append(f"{self.name} x{repetitions}")
        if self.turns == self.fails_at:
            raise WorkerError(f"{self.name} died")
        return [10.0 * self.turns + number for number in range(repetitions)]

    def finish(self):
        self.log.append(f"finish {self.name}")
        return Farewell(1, None)

    def kill(self):
        self.log.append(f"kill {self.name}")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(rounds_module.time, "sleep", lambda seconds: None)


def run(groups, rounds, fails=None, turns=None, starts=1):
    log = []
    names = {name for group in groups for name in group}
    turns = turns or dict.fromkeys(names, Turn(2))

    def start(name):
        return Worker(name, log, (fails or {}).get(name))

    try:
        return log, measure(groups, start, turns, rounds, lambda line: None, starts)
    except WorkerError as error:
        return log, error


def test_workers_alternate():
    log, measured = run([["a", "b"]], 2)
    assert log == ["start a", "start b", "a x3", "b x3", "a x3", "b x3", "finish a", "finish b"]
    # The first repetition of a turn is not counted.
    assert measured.rounds == [{"a": [11.0, 12.0], "b": [11.0, 12.0]}, {"a": [21.0, 22.0], "b": [21.0, 22.0]}]
    assert {name: len(told) for name, told in measured.readiness.items()} == {"a": 1, "b": 1}
    assert {name: len(told) for name, told in measured.farewells.items()} == {"a": 1, "b": 1}


def test_every_worker_has_its_own_turn():
    log, measured = run([["a", "b"]], 1, turns={"a": Turn(1, discard=0), "b": Turn(3)})
    assert log[2:4] == ["a x1", "b x4"]
    assert measured.rounds == [{"a": [10.0], "b": [11.0, 12.0, 13.0]}]


def test_a_worker_lives_from_its_first_group_to_its_last():
    log, measured = run([["peak", "a"], ["peak", "a", "b"], ["peak", "c"]], 1)
    assert log == [
        *("start peak", "start a", "peak x3", "a x3"),
        *("start b", "peak x3", "a x3", "b x3", "finish a", "finish b"),
        *("start c", "peak x3", "c x3", "finish peak", "finish c"),
    ]
    assert [list(seconds) for seconds in measured.rounds] == [
        ["peak", "a"],
        ["peak", "a", "b"],
        ["peak", "c"],
    ]


def test_workers_are_started_anew():
    log, measured = run([["a", "b"]], 1, starts=2)
    once = ["start a", "start b", "a x3", "b x3", "finish a", "finish b"]
    assert log == once + once
    assert measured.rounds == [{"a": [11.0, 12.0], "b": [11.0, 12.0]}] * 2
    assert [len(told["b"]) for told in (measured.readiness, measured.farewells)] == [2, 2]


def test_one_that_dies_ends_all():
    log, error = run([["a", "b"]], 3, fails={"b": 2})
    assert str(error) == "b died"
    assert log[-3:] == ["b x3", "kill a", "kill b"]
