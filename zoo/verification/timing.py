"""Fair timing: candidates take turns in one process, so that the machine's drift meets all of them alike."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds of each call of each candidate, `rounds` of them, taken in turn after `warmup` uncounted rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        order = list(candidates)[:: 1 if turn % 2 == 0 else -1]  # so that each follows each as often
        for name in order:
            call = candidates[name]
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each candidate's seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> float:
    """The median, over the rounds, of one candidate's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def _synchronize() -> None:
    torch = sys.modules.get("torch")  # only where the candidates use it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
