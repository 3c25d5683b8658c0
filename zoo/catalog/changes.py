"""What a command line or a caller changes in a recipe, before it is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from zoo.errors import OptionError

EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # which YAML 1.1 takes for text


@dataclass(frozen=True)
class Changes:
    """Settings that stand in place of a recipe's, for all tasks."""

    epochs: int | None = None  # exactly so many: `min_steps` no longer counts
    lr: float | None = None  # of the increments, or of the rest where these have none; other rates in relation to it
    batch_size: int | None = None
    image_size: int | None = None  # height of the input; its width and resize keep their relation
    set: tuple[str, ...] | str = ()  # others, as KEY=VALUE, such as "rest.momentum=0.8" or "tasks.letters.epochs=20"

    def applied(self, data: dict[str, Any]) -> dict[str, Any]:
        """A recipe's data with the changes in it.

        Raises:
            OptionError: something is no KEY=VALUE, or there is nothing that such a key could be part of.
        """
        data = _copied(data)
        if self.image_size is not None:
            _resize(data, self.image_size)
        if self.lr is not None:
            _scale_rates(data, self.lr)
        named = {"epochs": self.epochs, "batch": self.batch_size}
        others = map(_pair, [self.set] if isinstance(self.set, str) else self.set)
        for path, value in [*((path, value) for path, value in named.items() if value is not None), *others]:
            _put(data, path, value)
            if path == "epochs":
                _put(data, "min_steps", 0)
        return data


def _copied(data: Any) -> Any:
    """Data without aliases: what stands twice is there twice."""
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list) else data


def _pair(text: str) -> tuple[str, Any]:
    key, is_pair, value = text.partition("=")
    if not is_pair or not key.strip():
        raise OptionError(f"{text!r} is no KEY=VALUE, such as rest.lr=0.01.")
    try:
        return key.strip(), _numbers(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise OptionError(f"The value of {text!r} cannot be read: {error}") from error


def _numbers(value: Any) -> Any:
    """The same with 1e-3 as the number that it means."""
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _own_of(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What tasks say themselves, as far as it is a mapping: the check of the whole tells of anything else."""
    tasks = data.get("tasks")
    yield from (own for own in tasks.values() if isinstance(own, dict)) if isinstance(tasks, dict) else ()


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set what a dotted path names, for every task: what tasks say of it themselves gives way."""
    *above, last = path.split(".")
    place: Any = data
    for name in above:
        if place.get(name) is None:
            place[name] = {}
        place = place[name]
        if not isinstance(place, dict):
            raise OptionError(f"{path} cannot be set: the recipe's {name} is {place!r} and has no parts.")
    place[last] = value
    for own in _own_of(data) if above[:1] != ["tasks"] else ():
        part: Any = own
        for name in above:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part.pop(last, None)


def _scale_rates(data: dict[str, Any], lr: float) -> None:
    leading = data.get("increments") or data.get("rest")
    base = leading.get("lr") if isinstance(leading, dict) else None
    if isinstance(base, bool) or not isinstance(base, int | float) or not base > 0:
        raise OptionError(f"lr needs a learning rate to stand in place of; the recipe's is {base!r}.")
    for own in (data, *_own_of(data)):
        for group in ("increments", "rest"):
            found = own.get(group)
            rate = found.get("lr") if isinstance(found, dict) else None
            if isinstance(found, dict) and isinstance(rate, int | float):
                found["lr"] = lr if rate == base else rate * lr / base


def _resize(data: dict[str, Any], size: int) -> None:
    """Give the input, and that of each task which has its own, another height; width and resize in relation.

    A resize or a width that stands without a size goes with the backbone's, and is left to its card.
    """
    common = data.get("input") or {}
    if not isinstance(common, dict):
        return
    for own in _own_of(data):
        if isinstance(own.get("input"), dict):
            own["input"] |= _resized({**common, **own["input"]}, size)
    data["input"] = _resized(common, size)
    if data["input"].get("resize", size) is not None and "size" not in common:
        data["input"].pop("resize", None)


def _resized(given: dict[str, Any], size: int) -> dict[str, Any]:
    before, made = given.get("size"), {**given, "size": size}
    for name in ("resize", "width"):
        if isinstance(given.get(name), int) and isinstance(before, int) and before > 0:
            made[name] = round(given[name] * size / before)
    return made
