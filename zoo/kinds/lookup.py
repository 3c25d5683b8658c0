"""Kinds of tasks by name: every file of this folder that defines one names it `KIND`.

One whose name begins with an underscore serves another file, and is imported where it is needed alone.
"""

import functools
import importlib
import pkgutil
from pathlib import Path

from zoo.errors import UnknownNameError
from zoo.kinds.base import Kind


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every kind of task by its name, as found in the files of this folder."""
    files = [file.name for file in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in files if not name.startswith("_")]
    return {module.KIND.name: module.KIND for module in modules if hasattr(module, "KIND")}


def get_kind(name: str) -> Kind:
    """The kind of task called `name`; raises UnknownNameError with the nearest names."""
    try:
        return kinds()[name]
    except KeyError:
        raise UnknownNameError("kind of task", name, kinds()) from None
