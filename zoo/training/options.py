"""How a run is carried out: all that a command may say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zoo.catalog.changes import Changes
from zoo.training.loop import Execution


@dataclass(frozen=True)
class RunOptions(Execution):
    """How a run is carried out."""

    data_root: Path | None = None
    resume: bool = False  # go on from the last epoch's checkpoint
    overwrite: bool = False  # discard what is there, and train anew
    begin: Path | None = None  # a folder of adapter files that the tasks begin with
    recipe: str | None = None  # a recipe's name or file, in place of the entry's
    seed: int | None = None  # in place of the recipe's
    changes: Changes = field(default_factory=Changes)  # of other settings of the recipe
    backbone_weights: Path | None = None  # a file, in place of the published ones
    source_weights: str = "auto"  # of the entry that this one's adapters are compressed from, as `zoo.load` takes them
    skip_unreadable: bool = False
    cache: bool = False  # decode the training images once, and keep them in the cache
    cpu: bool = False
    tracker: str | None = None  # "tensorboard" or "wandb"
    quiet: bool = False
