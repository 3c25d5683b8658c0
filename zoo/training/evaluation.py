"""How well a network does on a task's test images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from zoo.catalog.task import Task
from zoo.datasets import Images, Transformed
from zoo.errors import WeightsError
from zoo.kinds import get_kind
from zoo.kinds.base import main_output


def measure(
    network: Callable[[Tensor], Any],
    images: Images,
    task: Task,
    *,
    batch: int = 100,
    device: torch.device | str = "cpu",
    workers: int = 0,
    accelerator: Accelerator | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> float:
    """What `network` achieves at a task, in the unit of its metric; top-1 accuracy in per cent for a classifier.

    The caller puts the network, which maps a batch (B, C, H, W) to the task's outputs, in evaluation mode and on
    `device`. Maps are compared at the size of the network's input.

    Args:
        accelerator: of several processes, each of which tests its share of the images; all get the same figure.
        watch: is shown the outputs and the targets of each batch, in the order of the images.

    Raises:
        WeightsError: the network's outputs are not finite.
        DataError: nothing is known of any target.
    """
    place, places = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = Subset(images, range(place, len(images), places))  # type: ignore[arg-type]
    loader = DataLoader(Transformed(share, task.preprocessing.transform()), batch, num_workers=workers)
    kind = get_kind(task.kind)
    meter = kind.meter(len(task.classes)).set_dtype(torch.float64).to(device)  # which adds up all processes' shares
    with torch.no_grad():
        for inputs, targets in loader:
            outputs, wanted = main_output(network(inputs.to(device))), kind.held_against(inputs, targets)
            if not outputs.isfinite().all():
                raise WeightsError(f"The outputs for {task.name} are not finite: the training diverged. Train it anew.")
            meter.update(*kind.compared(outputs, wanted.to(device)))
            if watch:
                watch(outputs, targets)
    return kind.figure(meter)
