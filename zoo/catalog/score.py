"""The decathlon score, which rewards a task's last errors more than its first."""

from __future__ import annotations

from collections.abc import Mapping

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry

POINTS, EXPONENT = 1000, 2
# What the Visual Decathlon scores against: its organisers' fine-tuned networks (Rebuffi et al., NIPS 2017, Table 1).
CHALLENGE = {
    "imagenet12": 59.87, "aircraft": 60.34, "cifar100": 82.12, "daimlerpedcls": 92.82, "dtd": 55.53, "gtsrb": 97.53,
    "vgg-flowers": 81.41, "omniglot": 87.69, "svhn": 96.55, "ucf101": 51.20,
}  # fmt: skip


def scale(entry: Entry, registry: Registry, kind: str) -> dict[str, float] | None:
    """The accuracies that an entry's decathlon score is relative to; None where there are none.

    Args:
        kind: "measured" or "reported", of the baseline entry.
    """
    if entry.baseline in ("", "challenge"):
        return CHALLENGE if entry.baseline else None
    baseline = registry.entry(entry.baseline)
    if kind == "measured":
        return baseline.measured
    return baseline.reported.figures if baseline.reported else None


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
