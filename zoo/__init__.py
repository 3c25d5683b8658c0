"""FTN zoo: one frozen backbone, a small file per task, and everything to train, verify, fuse and export them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo import export as export
    from zoo.catalog.recipe import Recipe as Recipe
    from zoo.catalog.registry import Registry as Registry
    from zoo.catalog.registry import list_models as list_models
    from zoo.catalog.registry import register as register
    from zoo.catalog.task import Preprocessing as Preprocessing
    from zoo.catalog.task import Task as Task
    from zoo.compression.fine_tuned import factorise as factorise
    from zoo.deployment.interchange import load_peft as load_peft
    from zoo.deployment.interchange import save_peft as save_peft
    from zoo.deployment.parcel import bundle as bundle
    from zoo.deployment.parcel import push as push
    from zoo.errors import ZooError as ZooError
    from zoo.loader import adapt as adapt
    from zoo.loader import load as load
    from zoo.models.adapted import TaskModel as TaskModel
    from zoo.models.swapping import swap as swap
    from zoo.training.own import evaluate as evaluate
    from zoo.training.own import train as train

__version__ = "0.2.0"

_HOMES = {  # imported when first used, so that `import zoo` and `zoo ls` need no torch
    "Preprocessing": "zoo.catalog.task",
    "Recipe": "zoo.catalog.recipe",
    "Registry": "zoo.catalog.registry",
    "Task": "zoo.catalog.task",
    "TaskModel": "zoo.models.adapted",
    "ZooError": "zoo.errors",
    "adapt": "zoo.loader",
    "bundle": "zoo.deployment.parcel",
    "evaluate": "zoo.training.own",
    "factorise": "zoo.compression.fine_tuned",
    "list_models": "zoo.catalog.registry",
    "load": "zoo.loader",
    "load_peft": "zoo.deployment.interchange",
    "push": "zoo.deployment.parcel",
    "register": "zoo.catalog.registry",
    "save_peft": "zoo.deployment.interchange",
    "swap": "zoo.models.swapping",
    "train": "zoo.training.own",
}
__all__ = [
    "Preprocessing", "Recipe", "Registry", "Task", "TaskModel", "ZooError", "adapt", "bundle", "evaluate", "export",
    "factorise", "list_models", "load", "load_peft", "push", "register", "save_peft", "swap", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "export":
        return importlib.import_module("zoo.export")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
