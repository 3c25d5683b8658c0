"""What a task asks for: its loss, its metric and what is drawn of its answers. One file per kind of task.

What is known of a kind without torch, its metric's name and its number of channels, stands in `zoo.catalog.task`.
"""

from zoo.kinds.base import IGNORE, DenseKind, Kind, LabelKind
from zoo.kinds.lookup import get_kind, kinds

__all__ = ["IGNORE", "DenseKind", "Kind", "LabelKind", "get_kind", "kinds"]
