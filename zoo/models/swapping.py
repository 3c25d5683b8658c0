"""A fused network becomes another task's, in place: what was compiled of it goes on without being compiled again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.task import has_labels
from zoo.errors import OptionError
from zoo.models.frozen import exact_arithmetic
from zoo.models.multitask import MultiTaskModel

SHOWN = 6  # of the tensors that do not fit, in an error


def swap(plain: nn.Module, model: MultiTaskModel, task: str) -> None:
    """Make a network that `model.fuse` gave what `model.fuse(task)` gives, bit for bit, in the tensors that it has.

    So a network under `torch.compile`, or recorded as a CUDA graph, serves the other task from its next pass on.
    Nothing is added or taken away, so any number of swaps leaves no drift. Passes of other threads are not waited for.

    Where a classifier has more outputs than the task has classes, the further logits are -inf: begin with the task
    of the most classes, and every other one fits. Maps have to have as many channels, for to resize one of -inf gives
    no number.

    Args:
        plain: a network of `model.fuse`, of any type of number and device, as it stands or from `torch.compile(…)`. Its
            frozen tensors are not looked at: it has to be of a model with this backbone.
        model: one that has the task.

    Raises:
        OptionError: a tensor does not fit, and nothing is changed then; or inductor has frozen the network's weights
            into what it compiled.
    """
    model.task(task)
    _check_not_frozen(plain)
    network: nn.Module = getattr(plain, "_orig_mod", plain)
    with torch.no_grad(), exact_arithmetic():
        there, own = network.state_dict(), model.plain_tensors(task)
        fitting = _fitting(there, own, task, widens=has_labels(model.task(task).kind))
        for name, tensor in fitting.items():
            there[name].copy_(tensor)


def _check_not_frozen(plain: nn.Module) -> None:
    """Raise OptionError where the compiled network holds copies of its weights as constants."""
    from torch._inductor import config

    asked = getattr(getattr(plain, "dynamo_ctx", None), "compiler_config", None) or {}
    if config.freezing or asked.get("freezing"):
        raise OptionError(
            "Inductor's freezing makes constants of a network's weights, which no swap reaches: compile it without "
            "freezing, or hand each task's tensors to an AOTInductor package by its load_constants."
        )


def _fitting(
    there: Mapping[str, Tensor], own: Mapping[str, Tensor], task: str, widens: bool
) -> dict[str, Tensor]:  # fmt: skip
    """A task's tensors in the shapes of those there, a head's filled up to more outputs."""
    found, problems = {}, [f"no tensor {name}" for name in own if name not in there]
    for name, tensor in own.items():
        if name not in there:
            continue
        wanted = there[name].shape
        layer, _, kind = name.rpartition(".")
        wider = tensor.ndim > 0 and tensor.shape[1:] == wanted[1:] and tensor.shape[0] < wanted[0]
        if tensor.shape == wanted:
            found[name] = tensor
        elif widens and wider and kind in ("weight", "bias") and f"{layer}.bias" in own:
            found[name] = _filled(tensor, wanted[0], -math.inf if kind == "bias" else 0.0)
        else:
            problems.append(f"{name} is {tuple(wanted)}, the task's {tuple(tensor.shape)}")
    if problems:
        more = f"; … ({len(problems)} in all)" if len(problems) > SHOWN else ""
        raise OptionError(
            f"The network cannot become {task}: {'; '.join(problems[:SHOWN])}{more}. Fuse it of the same model, of the "
            "task with the most classes."
        )
    return found


def _filled(tensor: Tensor, rows: int, value: float) -> Tensor:
    """A tensor with further rows of a value."""
    more: Any = tensor.new_full((rows - len(tensor), *tensor.shape[1:]), value)
    return torch.cat([tensor, more])
