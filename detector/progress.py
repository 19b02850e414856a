"""What a run shows while it trains: a bar with losses, speed and time left, or plain lines for logs."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from detector.lasting_output import lasting

_PARTS = {"rpn_objectness": "objectness", "rpn_box": "rpn box", "class": "class", "box": "box", "l2": "l2"}

# From this part of the time on, that the input pipeline holds the steps up is worth saying.
_SHOWN_INPUT_SHARE = 0.1


class Progress:
    """Shows steps as they end; with `bar` false it prints a line every `log_every` steps instead."""

    def __init__(self, start: int, steps: int, batch_size: int, log_every: int, bar: bool):
        self._steps, self._batch_size, self._log_every = steps, batch_size, log_every
        self._console = Console(file=lasting(sys.stdout), highlight=False)
        # The first step traces the graph; rates are taken over the steps after it.
        self._ends: deque[float] = deque(maxlen=100)
        self._waits: deque[float] = deque(maxlen=100)
        self._bar: RichProgress | None = None
        if bar:
            self._bar = RichProgress(
                TextColumn("[bold]training"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=steps, completed=start, status="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, status: str) -> None:
        """Show in the bar what is done before the next step ends."""
        if self._bar is not None:
            self._bar.update(self._task, status=status)

    def advance(self, step: int, values: Mapping[str, float], waited: float) -> None:
        """Show that `step` steps are done, with the named losses of the last.

        `waited` is how many seconds it stood still for its batch.
        """
        self._ends.append(time.perf_counter())
        self._waits.append(waited)
        rates = self.rates()
        rate = rates.get("images_per_second")
        speed = f"{rate:.1f} images/s" if rate else ""
        if rates.get("input_share", 0.0) >= _SHOWN_INPUT_SHARE:
            speed += f" ({rates['input_share']:.0%} of the time waiting for images)"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=f"{speed}  loss {values['loss']:.3f}")
        elif step % self._log_every == 0 or step == self._steps:
            parts = ", ".join(f"{word} {values[name]:.3f}" for name, word in _PARTS.items() if name in values)
            left = (self._steps - step) * self._batch_size / rate if rate else None
            time_left = f"  {timedelta(seconds=round(left))} left" if left is not None else ""
            line = f"step {step}/{self._steps}  loss {values['loss']:.3f} ({parts})  {speed}{time_left}"
            self._console.print(line, soft_wrap=True)

    def rates(self) -> dict[str, float]:
        """Return `images_per_second`, and the part of the time that steps stood still for their batches.

        That is `input_share`, 0 … 1.  Both are over the last steps, once there are two to measure between.
        """
        if len(self._ends) < 2:
            return {}
        seconds = self._ends[-1] - self._ends[0]
        return {
            "images_per_second": (len(self._ends) - 1) * self._batch_size / seconds,
            "input_share": sum(list(self._waits)[1:]) / seconds,
        }

    def note(self, text: str) -> None:
        """Print a line above the bar, and leave the time it took to come by out of the rates."""
        self._ends.clear()
        self._waits.clear()
        (self._bar.console if self._bar is not None else self._console).print(
            text, markup=False, soft_wrap=True
        )
