"""Ways of sharing by name: every file of this folder that defines one names it `SHARING`."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from zoo.catalog.options import check_options
from zoo.errors import UnknownNameError
from zoo.joint.base import Sharing
from zoo.joint.model import JointModel
from zoo.joint.network import Network


@functools.cache
def sharings() -> dict[str, type[Sharing]]:
    """Every way of sharing by its name, as found in the files of this folder."""
    files = pkgutil.iter_modules([str(Path(__file__).parent)])
    modules = [importlib.import_module(f"{__package__}.{file.name}") for file in files]
    found = [module.SHARING for module in modules if hasattr(module, "SHARING")]
    return {sharing.name: sharing for sharing in found}


def joined(
    networks: Mapping[str, Network], method: str, options: Mapping[str, Any], trunk: nn.Module | None = None,
    left_aside: tuple[str, ...] = (),
) -> JointModel:  # fmt: skip
    """A model of several networks, with no task yet.

    Raises:
        UnknownNameError: no such way of sharing.
        OptionError: it does not take these options, or the networks cannot share what they should.
    """
    if method not in sharings():
        raise UnknownNameError("way of sharing", method, sharings())
    taken = list(inspect.signature(sharings()[method]).parameters.values())[1:]
    check_options(method, taken, options)
    return JointModel(networks, sharings()[method], options, trunk, left_aside)
