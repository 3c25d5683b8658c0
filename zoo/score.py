"""The decathlon score, which rewards a task's last errors more than its first."""

from __future__ import annotations

from collections.abc import Mapping

POINTS, EXPONENT = 1000, 2


def decathlon_score(accuracy: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """S = Σ_t 1000 · max(0, 1 − E_t / E_t^max)², with E_t^max twice the baseline's error (Rebuffi et al., NIPS 2017).

    A network as good as the baseline has 250 points per task, one without errors 1000. A task that the baseline does
    without any error cannot be scaled: it counts 1000 if it is done without error too, else 0.

    Args:
        accuracy, baseline: top-1 in per cent, by task.
    """
    points = 0.0
    for task, value in accuracy.items():
        error, limit = 100 - value, 2 * (100 - baseline[task])
        share = 1 - error / limit if limit else float(error == 0)
        points += POINTS * max(0.0, share) ** EXPONENT
    return points
