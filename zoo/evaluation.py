"""How well a network does on a task's test images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
) -> float:
    """Top-1 accuracy in per cent of `network`, which maps a batch (B, C, H, W) to logits (B, classes).

    The caller puts the network in evaluation mode and on `device`.
    """
    loader = DataLoader(Transformed(images, preprocessing.transform()), batch, num_workers=workers)
    correct = total = 0
    with torch.no_grad():
        for inputs, labels in loader:
            predicted = network(inputs.to(device)).argmax(1).cpu()
            correct += int((predicted == labels).sum())
            total += len(labels)
    return 100 * correct / total
