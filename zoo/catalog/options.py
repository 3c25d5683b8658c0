"""The options of methods: checked by name, and by kind."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.catalog.schema import told
from zoo.errors import OptionError

LARGEST_RANK = 65_536


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
        raise OptionError(f"The {what} must be a whole number of at least 1, not {told(value)!r}.")
    return value


def check_rank(what: str, rank: Any) -> int:
    """`rank`, if it is a whole number of at least 1, and no more than layers may have; raises OptionError if not."""
    if whole_number(what, rank) > LARGEST_RANK:
        raise OptionError(f"The {what} must be at most {LARGEST_RANK:,}, not {told(rank)!r}.")
    return int(rank)


def check_ranks(what: str, ranks: Any) -> None:
    """Raise OptionError unless `ranks` is such as `check_rank` takes, or a mapping of patterns to these, or to 0."""
    if not isinstance(ranks, Mapping):
        check_rank(what, ranks)
        return
    if not ranks:
        raise OptionError(f"The {what} names no layer; a rank of 0 for all is {{'*': 0}}.")
    for pattern, rank in ranks.items():
        if not isinstance(pattern, str) or isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise OptionError(
                f"The {what} of {pattern!r} must be a whole number, 0 for none at all, not {told(rank)!r}."
            )
        if rank:
            check_rank(f"{what} of {pattern!r}", rank)


def rank_at(ranks: Mapping[str, int], path: str) -> int:
    """The rank of a layer: what its path says, else what that pattern says of those that match which spells out most of
    it; where none does, 0: nothing at all.
    """
    if path in ranks:
        return ranks[path]
    found = [pattern for pattern in ranks if fnmatch.fnmatchcase(path, pattern)]
    return ranks[max(found, key=lambda pattern: len(re.sub(r"\[.*?\]|[*?]", "", pattern)))] if found else 0


def options_at(options: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A method's options for one layer, whose rank may be 0."""
    ranks = options.get("rank")
    return {**options, "rank": rank_at(ranks, path)} if isinstance(ranks, Mapping) else dict(options)


def check_ranks_of(options: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Raise OptionError where a rank by layers is no such, or names a layer that is none of those to adapt."""
    ranks = options.get("rank")
    if not isinstance(ranks, Mapping):
        return
    check_ranks("rank", ranks)
    if odd := [pattern for pattern in ranks if not fnmatch.filter(paths, pattern)]:
        raise OptionError(f"The rank of {odd[0]!r} is no adapted layer's; such are {', '.join(paths[:8])}.")


def as_patterns(ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks of layers by their paths, said shortly: the most frequent one is everyone's, "*"."""
    values = list(ranks.values())
    usual = max(dict.fromkeys(values), key=values.count, default=0)
    return {"*": usual} | {path: rank for path, rank in ranks.items() if rank != usual}
