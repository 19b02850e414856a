"""The parent's side of the protocol: starts a worker, asks it for times, and says what went wrong with it."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHOWN_LINES = 15  # of a dead worker's standard error: a traceback's end


class WorkerError(RuntimeError):
    """A worker died, or answered something else than the protocol has; the message ends with its words."""


@dataclass(frozen=True)
class Readiness:
    """What a worker tells once it has done its first repetition.

    `import_seconds` from its start until its libraries are loaded, `start_seconds` from there until the first
    repetition was done, `first_step_seconds` that repetition alone; the first two are None where it does not
    say.  `images` is how many images a repetition works on.
    """

    import_seconds: float | None
    start_seconds: float | None
    first_step_seconds: float
    images: int


@dataclass(frozen=True)
class Farewell:
    """What a worker tells at its end: its peak memory, and a repetition's operations if it counts them."""

    peak_memory_bytes: int | None
    flops: float | None


class WorkerProcess:
    """One workload in a process of its own; see `detector.benchmark.worker` for what is said.

    `readiness` is there when the constructor returns, which is after the first repetition.
    """

    def __init__(self, name: str, command: Sequence[str], spec: Mapping[str, Any]):
        """Start `command` and wait until it has done `spec` once.

        Raises:
            WorkerError: it could not be started, died, refused, or answered something else.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # Its temporary files go with it, however it ends.
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        started_at = time.monotonic()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, "TMPDIR": self._folder.name},
                # In a session of its own: Ctrl-C is for the parent, which ends it together with its children.
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            self._folder.cleanup()
            raise WorkerError(f"{name}: cannot start {command[0]!r}: {error.strerror}") from None
        try:
            answer = self._ask({**spec, "started_at": started_at}, "first_step_seconds")
            self.readiness = Readiness(
                import_seconds=self._optional(answer, "import_seconds"),
                start_seconds=self._optional(answer, "start_seconds"),
                first_step_seconds=self._number(answer, "first_step_seconds"),
                images=int(self._number(answer, "images") if "images" in answer else spec["batch_size"]),
            )
        except BaseException:
            self.kill()
            raise

    def run(self, repetitions: int) -> list[float]:
        """Return the seconds of so many repetitions, one by one."""
        answer = self._ask({"run": repetitions}, "seconds")
        seconds = answer["seconds"]
        if not isinstance(seconds, list) or len(seconds) != repetitions:
            raise WorkerError(f'{self.name}: expected {repetitions} numbers in "seconds", got {seconds!r}')
        if not all(isinstance(value, int | float) and value > 0 for value in seconds):
            raise WorkerError(f'{self.name}: expected times above 0 in "seconds", got {seconds!r}')
        return [float(value) for value in seconds]

    def finish(self) -> Farewell:
        """Let the worker end."""
        answer = self._ask({"quit": True}, "peak_memory_bytes")
        memory = self._optional(answer, "peak_memory_bytes")
        flops = self._optional(answer, "flops")
        self._process.communicate()
        self.kill()
        return Farewell(None if memory is None else int(memory), flops)

    def kill(self) -> None:
        """End the worker and what it started, whatever it does, and delete what it left."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._folder.cleanup()

    def _ask(self, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Send a line and return the answer, which must have `key`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last tells why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            # What a library prints on the way is none of ours.
            if not line.startswith("{"):
                continue
            try:
                answer = json.loads(line)
            except ValueError:
                raise WorkerError(f"{self.name}: expected a line of JSON, got {line.strip()!r}") from None
            if "error" in answer:
                raise WorkerError(f"{self.name}: {answer['error']}")
            if key not in answer:
                raise WorkerError(f'{self.name}: expected an answer with "{key}", got {line.strip()}')
            return answer
        code = self._process.wait()
        raise WorkerError(
            f"{self.name} ended with exit code {code} instead of answering {json.dumps(dict(request))[:60]}; "
            f"its standard error ends with:\n{self._last_words()}"
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "\n".join(f"  {line}" for line in lines[-_SHOWN_LINES:]) or "  (nothing)"

    def _number(self, answer: Mapping[str, Any], key: str) -> float:
        value = answer[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise WorkerError(f'{self.name}: expected a number from 0 in "{key}", got {value!r}')
        return float(value)

    def _optional(self, answer: Mapping[str, Any], key: str) -> float | None:
        return None if answer.get(key) is None else self._number(answer, key)
