"""Alternating rounds: workers take turns, so that what slows the machine for a while slows them all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from detector.benchmark.process import Farewell, Readiness, WorkerProcess

Round = Mapping[str, Sequence[float]]
"""{worker's name: seconds of its repetitions in this round}"""


@dataclass(frozen=True)
class Turn:
    """How often a worker repeats its workload when it is its turn: `discard` times before it counts."""

    repeats: int
    discard: int = 1  # the first repetition finds the caches full of another worker's data


# After each turn: a worker's input pipeline may still be filling its buffers.
_SETTLE_SECONDS = 0.1


@dataclass(frozen=True)
class Measurement:
    """What the workers of a call told, by name, one entry for each time that they were started.

    `rounds` are those that the groups went through, in order.
    """

    readiness: dict[str, list[Readiness]]
    farewells: dict[str, list[Farewell]]
    rounds: list[Round]


def measure(
    groups: Sequence[Sequence[str]],
    start: Callable[[str], WorkerProcess],
    turns: Mapping[str, Turn],
    rounds: int,
    note: Callable[[str], None],
    starts: int = 1,
) -> Measurement:
    """Run groups of workers one after the other, and each group's workers in turns.

    A process keeps the luck of its memory's layout for as long as it lives: of the same code one is a percent
    or two slower than the next.  More rounds do not even that out; more `starts` do.

    Args:
        groups: workers' names.  A worker starts with the first group that it is in and ends with the last.
        start: starts the worker of a name.
        turns: what each does when it is its turn.
        rounds: how many turns each gets in a group.
        note: is told what happens.
        starts: how often all of that is done, with new workers each time.

    Raises:
        WorkerError: one of them failed; all have ended then.
    """
    measured = Measurement({name: [] for name in turns}, {name: [] for name in turns}, [])
    for number in range(starts):
        if starts > 1:
            note(f"start {number + 1} of {starts}")
        _measure_once(groups, start, turns, rounds, note, measured)
    return measured


def _measure_once(
    groups: Sequence[Sequence[str]],
    start: Callable[[str], WorkerProcess],
    turns: Mapping[str, Turn],
    rounds: int,
    note: Callable[[str], None],
    measured: Measurement,
) -> None:
    """Add to `measured` what workers tell that are started now, and end before this returns."""
    workers: dict[str, WorkerProcess] = {}
    try:
        for number, group in enumerate(groups):
            for name in group:
                if name not in workers:
                    workers[name] = start(name)
                    measured.readiness[name].append(workers[name].readiness)
                    note(f"{name}: first step after {workers[name].readiness.first_step_seconds:.1f} s")
            for number_of_round in range(rounds):
                measured.rounds.append({name: _take(turns[name], workers[name]) for name in group})
                note(f"round {number_of_round + 1} of {rounds}: {_medians(measured.rounds[-1])}")
            later = {name for other in groups[number + 1 :] for name in other}
            for name in [name for name in group if name not in later]:
                measured.farewells[name].append(workers.pop(name).finish())
    finally:
        for worker in workers.values():
            worker.kill()


def _take(turn: Turn, worker: WorkerProcess) -> list[float]:
    seconds = worker.run(turn.discard + turn.repeats)[turn.discard :]
    time.sleep(_SETTLE_SECONDS)
    return seconds


def _medians(seconds: Round) -> str:
    return ", ".join(f"{name} {1000 * sorted(s)[len(s) // 2]:.4g} ms" for name, s in seconds.items())
