"""What serves a task: a backbone with its layers adapted, which layers those are, and what every model is to its users.

Networks that share weights and have no backbone are `zoo.joint`'s; names and files are the loader's.
"""

from zoo.models.adapted import TaskModel
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import Placement

__all__ = ["MultiTaskModel", "Placement", "TaskModel"]
