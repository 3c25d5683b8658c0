"""How well a network does on a task's test images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from zoo.datasets import Images, Transformed
from zoo.task import Preprocessing


def accuracy(
    network: Callable[[Tensor], Tensor],
    images: Images,
    preprocessing: Preprocessing,
    *,
    batch: int = 100,
    device: torch.device | str = "cpu",
    workers: int = 0,
    accelerator: Accelerator | None = None,
) -> float:
    """Top-1 accuracy in per cent of `network`, which maps a batch (B, C, H, W) to logits (B, classes).

    The caller puts the network in evaluation mode and on `device`.

    Args:
        accelerator: of several processes, each of which tests its share of the images; all get the same figure.
    """
    place, places = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = Subset(images, range(place, len(images), places))  # type: ignore[arg-type]
    loader = DataLoader(Transformed(share, preprocessing.transform()), batch, num_workers=workers)
    correct = total = 0
    with torch.no_grad():
        for inputs, labels in loader:
            predicted = network(inputs.to(device)).argmax(1).cpu()
            correct += int((predicted == labels).sum())
            total += len(labels)
    if accelerator:
        sums = torch.tensor([correct, total], device=accelerator.device)
        correct, total = accelerator.reduce(sums).tolist()
    return 100 * correct / total
