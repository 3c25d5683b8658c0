"""ΔW: what a task adds to a frozen weight. One file per family of methods; each lists its `METHODS`."""

import functools
import importlib
import pkgutil

from zoo.errors import UnknownNameError
from zoo.increments.base import Increment, Method, Role

__all__ = ["Increment", "Method", "Role", "get_method", "methods"]


@functools.cache
def methods() -> dict[str, Method]:
    """Every method by its name, as found in the files of this folder."""
    found: dict[str, Method] = {}
    for file in pkgutil.iter_modules(__path__):
        for method in getattr(importlib.import_module(f"{__name__}.{file.name}"), "METHODS", []):
            if method.name in found:
                raise RuntimeError(f"two files of {__name__} define the method {method.name!r}")
            found[method.name] = method
    return found


def get_method(name: str) -> Method:
    """The method called `name`; raises UnknownNameError with the nearest names."""
    try:
        return methods()[name]
    except KeyError:
        raise UnknownNameError("method", name, methods()) from None
