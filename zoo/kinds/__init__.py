"""What a task asks for: its loss, its metric and what is drawn of its answers. One file per kind of task."""

import functools
import importlib
import pkgutil

from zoo.errors import UnknownNameError
from zoo.kinds.base import IGNORE, Kind

__all__ = ["IGNORE", "Kind", "get_kind", "kinds"]


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every kind of task by its name, as found in the files of this folder."""
    modules = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {module.KIND.name: module.KIND for module in modules if hasattr(module, "KIND")}


def get_kind(name: str) -> Kind:
    """The kind of task called `name`; raises UnknownNameError with the nearest names."""
    try:
        return kinds()[name]
    except KeyError:
        raise UnknownNameError("kind of task", name, kinds()) from None
