"""What long work says of itself: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

FIRST = 5.0  # seconds of steps, after which the time of all of them is estimated


def duration(seconds: float) -> str:
    """A time, as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Follows one task's training, step by step and epoch by epoch; as a context manager.

    Args:
        later: steps of other trainings that follow.
    """

    def __init__(
        self, title: str, epochs: int, steps: int, start: int = 0, quiet: bool = False, later: int = 0
    ) -> None:
        self.title, self.epochs, self.steps, self.start, self.later = title, epochs, steps, start, later
        self._taken, self._estimated, self._warm = 0, False, 0.0
        self._console = Console(file=sys.stderr, quiet=quiet)
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=epochs * steps, completed=start * steps, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, figures: Mapping[str, float]) -> None:
        """One optimiser step is done; `epoch` counts from 0, the figures are the epoch's means so far."""
        self._bar.update(self._task, advance=1, note=self._note(epoch, figures))
        self._taken += 1
        if self._taken == 1:
            self._warm = time.monotonic()  # the first step takes longer than the others
        passed = time.monotonic() - self._warm
        if not self._estimated and passed > FIRST:
            self._estimated = True
            self._estimate(passed / (self._taken - 1))

    def _estimate(self, each: float) -> None:
        """Say how long all will take, of which a step takes so many seconds."""
        left = (self.epochs - self.start) * self.steps - self._taken
        whole = f", {duration(each * (left + self.later))} for all that is to be trained" if self.later else ""
        if each * (left + self.later) > FIRST:
            self.say(f"{1000 * each:.0f} ms a step: about {duration(each * left)} more{whole}")

    def epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """An epoch is done, with its mean training loss and perhaps its training accuracy in per cent."""
        if self._console.is_terminal:
            return
        done = epoch + 1 - self.start
        left = (time.monotonic() - self._began) / done * (self.epochs - epoch - 1)
        self.say(f"{self._note(epoch, figures)}  {duration(left)} left")

    def _note(self, epoch: int, figures: Mapping[str, float]) -> str:
        accuracy = f"  train {figures['accuracy']:.1f} %" if "accuracy" in figures else ""
        return f"epoch {epoch + 1}/{self.epochs}  loss {figures['loss']:.3f}{accuracy}"

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(f"{self.title}: {text}", highlight=False, soft_wrap=True)
