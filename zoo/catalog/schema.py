"""Plain data into dataclasses: strict, and with every problem reported at once.

The registry and the recipes are read by `zoo ls` too, whose start-up time leaves no room for a validation library.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
PLAIN = (str, int)
NUMBERS = (int, float)
LARGEST = 2**63  # of whole numbers: what fits no type of torch's is a mistake


def told(value: Any) -> Any:
    """A value as a message shows it; Python does not write out numbers without a bound."""
    long = isinstance(value, int) and not -LARGEST <= value < LARGEST
    return f"a number of {len(f'{abs(value):x}')} hexadecimal digits" if long else value


def parse(kind: type[T], data: Any, problems: list[str], where: str = "") -> T | None:
    """`data` as a dataclass of type `kind`; None, and every problem appended to `problems`, where it is not one."""
    before = len(problems)
    value = _convert(kind, data, problems, where)
    return value if len(problems) == before else None


def _convert(kind: Any, data: Any, problems: list[str], where: str) -> Any:
    if kind in NUMBERS and type(data) is int and not -LARGEST <= data < LARGEST:
        return _wrong(problems, where, told(data), "one that computers take")
    if kind is Any or (kind in PLAIN and type(data) is kind):  # most values, and so that they are quick
        return data
    origin, args = _form(kind)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), data, problems, where)
    if origin is Literal:
        return data if data in args else _wrong(problems, where, data, "one of " + ", ".join(map(repr, args)))
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, problems, where)
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            return _wrong(problems, where, data, "a mapping")
        keys = {_convert(args[0], key, problems, f"{where}: key"): key for key in data}
        return {key: _convert(args[1], data[raw], problems, _join(where, str(raw))) for key, raw in keys.items()}
    if origin in (tuple, list):
        if not isinstance(data, list):
            return _wrong(problems, where, data, "a list")
        return origin(_convert(args[0], item, problems, f"{where}[{i}]") for i, item in enumerate(data))
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if (
        isinstance(data, kind)
        and (kind is bool or not isinstance(data, bool))
        and math.isfinite(data if kind is float else 0)
    ):
        return data
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return _wrong(problems, where, data, names.get(kind, kind.__name__))


def _dataclass(kind: Any, data: Any, problems: list[str], where: str) -> Any:
    if not isinstance(data, dict):
        return _wrong(problems, where, data, "a mapping")
    hints, fields = _fields(kind)
    before = len(problems)
    for key in data:
        if key not in fields:
            import difflib  # slow to import, and mistakes are rare

            near = difflib.get_close_matches(str(key), fields, n=1)
            advice = f"did you mean {near[0]}?" if near else "known: " + ", ".join(fields)
            problems.append(f"{_join(where, str(key))}: unknown key; {advice}")
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            problems.append(f"{_join(where, name)}: missing")
    values = {n: _convert(hints[n], data[n], problems, _join(where, n)) for n in fields if n in data}
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:  # a dataclass's own check of its values
        problems.append(f"{where or 'file'}: {error}")
        return None


@functools.cache
def _form(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """The types and the fields that a file may give, by name."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init and not f.metadata.get("derived")}
    return get_type_hints(kind), fields


def _wrong(problems: list[str], where: str, data: Any, expected: str) -> None:
    problems.append(f"{where or 'file'}: {data!r} is not {expected}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
