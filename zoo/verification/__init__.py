"""Entries held against what is claimed of them and against each other, in accuracy, size and time.

Nothing is changed here: what training is searched for is `zoo.search`'s.
"""

from zoo.verification.claims import Check, evaluate, retrain, verify, verify_backbone
from zoo.verification.comparison import common_tasks, compare
from zoo.verification.timing import interleaved, medians, ratio

__all__ = [
    "Check", "common_tasks", "compare", "evaluate", "interleaved", "medians", "ratio", "retrain", "verify",
    "verify_backbone",
]  # fmt: skip
