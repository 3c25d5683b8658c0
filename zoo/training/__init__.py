"""From images and a recipe to adapter files: batches, steps, whole runs, tests of what was trained, publishing.

Training again and again to find something out belongs to `zoo.search` and `zoo.verification`.
"""

from zoo.training.domains import train_own
from zoo.training.evaluation import measure
from zoo.training.loop import Execution, train_tasks
from zoo.training.options import RunOptions
from zoo.training.publishing import pack, publish
from zoo.training.runs import train_backbone, train_entry

__all__ = [
    "Execution", "RunOptions", "measure", "pack", "publish", "train_backbone", "train_entry", "train_own",
    "train_tasks",
]  # fmt: skip
