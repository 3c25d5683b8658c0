"""The papers' baselines that add nothing to any weight."""

from zoo.increments.base import Method

METHODS = [
    Method("features", "frozen features and norms, a head per task", norms=False),
    Method("bn", "task norms and head only"),
]
