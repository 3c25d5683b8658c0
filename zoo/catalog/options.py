"""The options of methods: checked by name, and by kind."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import OptionError


def check_options(method: str, taken: Sequence[inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Raise OptionError unless a method that takes these parameters is given all that it needs and no other."""
    strange = [name for name in options if name not in {p.name for p in taken}]
    missing = [p.name for p in taken if p.default is p.empty and p.name not in options]
    if strange or missing:
        problem = f"does not take {', '.join(strange)}" if strange else f"needs {', '.join(missing)}"
        known = ", ".join(p.name for p in taken) or "none"
        raise OptionError(f"The method {method!r} {problem}; its options are: {known}.")


def whole_number(what: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 1; raises OptionError if not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"The {what} must be a whole number of at least 1, not {value!r}.")
    return value
