"""What a command line or a caller changes in a recipe, before it is checked."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import yaml

from zoo.errors import OptionError


@dataclass(frozen=True)
class Changes:
    """Settings that stand in place of a recipe's, for all tasks."""

    epochs: int | None = None  # exactly so many: `min_steps` no longer counts
    lr: float | None = (
        None  # of the increments, or of the rest where it trains no others; all other rates keep their relation
    )
    batch_size: int | None = None
    image_size: int | None = None  # height of the input; its width and resize keep their relation
    set: tuple[str, ...] = ()  # others, as KEY=VALUE, such as "rest.momentum=0.8" or "tasks.letters.epochs=20"

    def applied(self, data: dict[str, Any]) -> dict[str, Any]:
        """A recipe's data with the changes in it.

        Raises:
            OptionError: something is no KEY=VALUE, or there is nothing that such a key could be part of.
        """
        data = copy.deepcopy(data)
        if self.epochs is not None:
            _put(data, "epochs", self.epochs)
            _put(data, "min_steps", 0)
        if self.batch_size is not None:
            _put(data, "batch", self.batch_size)
        if self.lr is not None:
            _scale_rates(data, self.lr)
        if self.image_size is not None:
            _resize(data, self.image_size)
        for each in self.set:
            key, is_pair, text = each.partition("=")
            if not is_pair or not key:
                raise OptionError(f"{each!r} is no KEY=VALUE, such as rest.lr=0.01.")
            _put(data, key.strip(), _value(text.strip(), each))
        return data


def _value(text: str, where: str) -> Any:
    """What a value on the command line means: a number (1e-3 too), or what YAML makes of it."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"The value of {where!r} cannot be read: {error}") from error


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set what a dotted path names, for every task: what tasks say of it themselves gives way."""
    *above, last = path.split(".")
    place: Any = data
    for name in above:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise OptionError(f"{path} cannot be set: the recipe's {name} is {place!r} and has no parts.")
    place[last] = value
    for own in (data.get("tasks") or {}).values() if above[:1] != ["tasks"] else ():
        part = functools.reduce(lambda part, name: part.get(name) if isinstance(part, dict) else None, above, own)
        if isinstance(part, dict):
            part.pop(last, None)


def _scale_rates(data: dict[str, Any], lr: float) -> None:
    leading = data.get("increments") or data.get("rest")
    base = leading.get("lr") if isinstance(leading, dict) else None
    if isinstance(base, bool) or not isinstance(base, int | float) or not base:
        raise OptionError("The recipe states no learning rate that lr could stand in place of.")
    for settings in (data, *(data.get("tasks") or {}).values()):
        for group in ("increments", "rest"):
            own = settings.get(group) if isinstance(settings, dict) else None
            if isinstance(own, dict) and isinstance(own.get("lr"), int | float):
                own["lr"] = lr if own["lr"] == base else own["lr"] * lr / base


def _resize(data: dict[str, Any], size: int) -> None:
    given = data.get("input") or {}
    before = given.get("size")
    _put(data, "input.size", size)
    for name in ("resize", "width"):
        if given.get(name) and before:
            _put(data, f"input.{name}", round(given[name] * size / before))
