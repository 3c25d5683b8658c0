"""Single-task learning: a network for each task, and nothing shared."""

from __future__ import annotations

from torch import nn

from zoo.joint.base import Sharing


class STL(Sharing):
    """One network per task, the baseline of the TRMTL paper."""

    name, summary = "stl", "a network for each task, nothing shared"

    def network(self, task: str) -> nn.Module:
        return self.plans[task].plain()


SHARING = STL
