"""Methods by name: every file of this folder lists its `METHODS`."""

import functools
import importlib
import pkgutil
from pathlib import Path

from zoo.errors import UnknownNameError
from zoo.increments.base import Method


@functools.cache
def methods() -> dict[str, Method]:
    """Every method by its name, as found in the files of this folder."""
    found: dict[str, Method] = {}
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        for method in getattr(importlib.import_module(f"{__package__}.{file.name}"), "METHODS", []):
            if method.name in found:
                raise RuntimeError(f"two files of {__package__} define the method {method.name!r}")
            found[method.name] = method
    return found


def get_method(name: str) -> Method:
    """The method called `name`; raises UnknownNameError with the nearest names."""
    try:
        return methods()[name]
    except KeyError:
        raise UnknownNameError("method", name, methods()) from None
