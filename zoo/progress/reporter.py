"""What long work says of itself: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Follows one task's training, step by step and epoch by epoch; as a context manager."""

    def __init__(self, title: str, epochs: int, steps: int, start: int = 0, quiet: bool = False) -> None:
        self.title, self.epochs, self.steps, self.start = title, epochs, steps, start
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

    def epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """An epoch is done, with its mean training loss and perhaps its training accuracy in per cent."""
        if self._console.is_terminal:
            return
        done = epoch + 1 - self.start
        left = (time.monotonic() - self._began) / done * (self.epochs - epoch - 1)
        self.say(f"{self._note(epoch, figures)}  {left:.0f} s left")

    def _note(self, epoch: int, figures: Mapping[str, float]) -> str:
        accuracy = f"  train {figures['accuracy']:.1f} %" if "accuracy" in figures else ""
        return f"epoch {epoch + 1}/{self.epochs}  loss {figures['loss']:.3f}{accuracy}"

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(f"{self.title}: {text}", highlight=False, soft_wrap=True)
