"""A training run on disk between two epochs: tensors in safetensors, the rest in its header; no pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.catalog.recipe import differences
from zoo.errors import WeightsError
from zoo.storage.tensors import read, replace_tensors, write


def save(
    path: Path, tensors: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer], state: Mapping[str, Any]
) -> None:
    """Write the trained tensors, what the optimisers remember, and `state`, atomically."""
    memory: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in tensors.items()}
    for i, optimizer in enumerate(optimizers):
        for j, slots in optimizer.state_dict()["state"].items():
            memory |= {f"optimizer/{i}/{j}/{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    write(path, memory, dict(state))


def load(
    path: Path, tensors: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer], state: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Read back what `save` wrote, into `tensors` and `optimizers`; returns the saved state.

    Args:
        state: what must agree with the saved state, such as the recipe's hash.
        settings: of the recipe, for an error that tells what differs; see `zoo.catalog.recipe.settings`.

    Raises:
        WeightsError: the file is damaged or belongs to another run.
    """
    memory, saved = read(path)
    for key, value in state.items():
        if saved.get(key, None if key in ("task", "recipe") else value) != value:
            words = differences(saved.get("settings"), settings) if key == "recipe" else ""
            raise WeightsError(
                f"The checkpoint {path} was made with {key} {words or f'{saved.get(key)!r}, not {value!r}'}. "
                "--overwrite starts over; another --out, with --from DIR, begins with adapter files that are finished."
            )
    model = {name.removeprefix("model/"): tensor for name, tensor in memory.items() if name.startswith("model/")}
    replace_tensors(tensors, model, str(path))
    for i, optimizer in enumerate(optimizers):
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in memory.items():
            if name.startswith(f"optimizer/{i}/"):
                _, _, j, slot = name.split("/")
                slots.setdefault(int(j), {})[slot] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return saved
