"""ΔW: what a task adds to a frozen weight. One file per family of methods; each lists its `METHODS`.

A file knows one layer at a time; which layers of a network are adapted is known to `zoo.models`.
"""

from zoo.increments.base import FrozenLayer, Increment, Method, Role, RowIncrement
from zoo.increments.lookup import get_method, methods

__all__ = ["FrozenLayer", "Increment", "Method", "Role", "RowIncrement", "get_method", "methods"]
