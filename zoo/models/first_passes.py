"""The first pass of each task: watched, so that what does not act is told before any work is lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.errors import OptionError
from zoo.models import proof


class FirstPasses:
    """What a model has seen of its tasks' first passes.

    Attributes:
        watched: the tasks whose first pass has been watched.
        learning: those whose gradients have been looked at, too.
    """

    def __init__(self) -> None:
        self.watched: set[str] = set()
        self.learning: set[str] = set()
        self._rows: dict[str, proof.Call] = {}  # of the first pass, until the task's fused network has been compared
        self._begun: dict[str, int] = {}  # how often a task's tensors had been written to when it was added
        self._refused = ""  # why the backbone cannot stay frozen, once that has shown

    def begin(self, model: proof.Provable, task: str) -> None:
        """Expect the first pass of a task."""
        self._begun[task] = _writes(model, task)

    def forget(self, task: str) -> None:
        """Know nothing of a task any more."""
        self._rows.pop(task, None)
        self._begun.pop(task)
        self.watched.discard(task)
        self.learning.discard(task)

    def are_over(self, task: str, learns: bool) -> bool:
        """Whether a pass, perhaps one that the task learns from, is not the first such."""
        return task in self.watched and (task in self.learning or not learns)

    def take(self, model: proof.Provable, task: str, call: proof.Call, learns: bool) -> Any:
        """The first pass of a task, or the first that it learns from; its outputs.

        In evaluation mode it is watched itself. In training mode, one in evaluation mode comes before it, and one for
        the gradients; where the network has no such mode or uses up its inputs, it is watched itself too.

        Raises:
            OptionError: a layer of the task is not used, or no gradient reaches it, or a frozen weight was written to.
        """
        if self._refused:
            raise OptionError(self._refused)
        rows, again = proof.two_rows(call), proof.can_repeat(call)
        frozen = {} if self.watched or model.method.trains_backbone else dict(model.backbone.named_parameters())
        before = proof.sums(frozen)
        aside = task in self.watched or (again and _watched_aside(model, task, call))
        if aside and again and learns:
            proof.check_gradients(model, task, rows)
        with model.selection.watched() as used, proof.blaming_the_head(model, task, call):
            outputs = model.serve(task, *call)
        if not aside:
            proof.check_used(model, task, used)
        try:
            proof.check_kept(before, frozen)
        except OptionError as error:
            self._refused = str(error)
            raise
        self._rows.setdefault(task, rows)
        self.watched.add(task)
        if learns:
            self.learning.add(task)
        return outputs

    def compare(self, model: proof.Provable, task: str, fused: nn.Module) -> None:
        """Raise OptionError where the first fused network that adds anything is not what the model is."""
        if task not in self._rows:
            return
        proof.check_fused(model, task, fused, self._rows[task])
        if _writes(model, task) != self._begun[task]:  # what adds nothing yet agrees in any case
            self._rows.pop(task, None)


def _watched_aside(model: proof.Provable, task: str, call: proof.Call) -> bool:
    """Whether a pass in evaluation mode could be made and watched before the real one, which is of another mode."""
    if not model.training and model.backbone._compiled_call_impl is None:
        return False
    inputs, named = proof.copied(call)
    try:
        with (
            model.selection.watched() as used, proof.evaluating(model), proof.repeatable(model),
            proof.uncompiled(model.backbone), torch.no_grad(),
        ):  # fmt: skip
            model.serve(task, inputs, named)
    except Exception:  # a network that runs in training alone, or inputs that the real pass will tell of
        return False
    proof.check_used(model, task, used)
    return True


def _writes(model: proof.Provable, task: str) -> int:
    """How often a task's tensors have been written to."""
    return sum(0 if t.is_inference() else t._version for t in model.task_tensors(task).values())
