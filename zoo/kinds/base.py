"""What training, testing and drawing need to know of a kind of task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.catalog.task import METRICS
from zoo.errors import DataError, OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "Every target of the test set is ignored or invalid, so there is nothing to measure."
IGNORE = 255  # the label of pixels that nothing is known of


class Meter(Protocol):
    """What gathers a figure over a test set, batch by batch: a metric of torchmetrics', or as much of one as is used.

    Where several processes test a share of the images each, `compute` gives all of them the figure of all shares.
    """

    def set_dtype(self, dst_type: torch.dtype) -> Any:
        """The meter, which adds up in this type."""

    def to(self, device: torch.device | str) -> Any:
        """The meter, which adds up on this device."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch of what `Kind.compared` gives."""

    def compute(self) -> Tensor:
        """The figure; not a number where nothing was taken."""


class Mean:
    """A mean of weighted values, as a Meter: of right and wrong answers (1 and 0), or of angles."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # of the values, each times its weight; of the weights

    def set_dtype(self, dst_type: torch.dtype) -> Mean:
        self.sums = self.sums.to(dst_type)
        return self

    def to(self, device: torch.device | str) -> Mean:
        self.sums = self.sums.to(device)
        return self

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take values of any shape, and their weights, of the same shape or one that broadcasts to it."""
        weights = targets.expand_as(predictions)
        self.sums += torch.stack([(predictions * weights).sum(), weights.sum()]).to(self.sums)

    def compute(self) -> Tensor:
        sums = self.sums.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return sums[0] / sums[1]


class Kind(ABC):
    """One kind of task. In what follows B are images, K classes, H and W the images' height and width.

    Attributes:
        name: as the registry writes it.
    """

    name: str

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """What training minimises: a scalar, the mean over all that is known of the targets, 0 where nothing is."""

    @abstractmethod
    def meter(self, outputs: int) -> Meter:
        """What gathers the task's metric over a test set, batch by batch.

        Args:
            outputs: classes, or channels, of the task.
        """

    @abstractmethod
    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions and the targets that the meter compares."""

    def held_against(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the outputs are held against in a test: the targets; the inputs, where the answer is to be these."""
        return targets

    def right(self, outputs: Tensor, targets: Tensor) -> tuple[int, int]:
        """How many answers are right, of how many; of none for a kind whose answers are not simply right or wrong."""
        return 0, 0

    def figure(self, meter: Meter) -> float:
        """What a meter has gathered, in the unit of the task's metric.

        Raises:
            DataError: nothing was known of any target.
        """
        value = float(meter.compute())
        if math.isnan(value):
            raise DataError(NOTHING)
        return 100 * value if METRICS[self.name].unit == "%" else value


class LabelKind(Kind):
    """A kind whose outputs are logits (B, K), for labels of whole images."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class, (…, K)."""


class DenseKind(Kind):
    """A kind whose outputs are maps (B, K, H, W), an answer at each pixel.

    Its targets are maps too, of the outputs' height and width.
    """

    channels: int | None = None  # of its target; None: one label
    form: str  # of its target, in words

    @abstractmethod
    def answer(self, outputs: Tensor) -> Tensor:
        """What the outputs say, to be drawn: a map of classes, metres, directions or probabilities."""

    @abstractmethod
    def draw(self, axes: Axes, answer: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
        """Draw the answer for one image, with what is needed to read it."""

    def check(self, target: Tensor, outputs: int) -> None:
        """Raise DataError where the target of one image cannot be one of so many classes or channels."""
        expected = 2 if self.channels is None else 3
        if target.ndim != expected or (self.channels and len(target) != self.channels):
            raise DataError(f"has the shape {tuple(target.shape)}, where {self.form} is needed")


def main_output(outputs: Any) -> Tensor:
    """The one of a network's outputs that its task is about: in training mode, some give auxiliary ones beside it.

    That is `logits` (torchvision's GoogLeNet and Inception) or `out` (its segmentation networks), else the first.

    Raises:
        OptionError: the network gives no tensor.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = next((outputs[key] for key in ("logits", "out") if key in outputs), next(iter(outputs.values()), None))
    elif isinstance(outputs, tuple | list):
        found = getattr(outputs, "logits", outputs[0] if outputs else None)
    elif not isinstance(outputs, Tensor):
        found = getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise OptionError(f"The network gives {type(outputs).__name__} and no tensor that could be a task's answer.")
    return found


def masked_mean(values: Tensor, known: Tensor) -> Tensor:
    """The mean of the values where `known` (of the same shape, or one that broadcasts to it) holds; 0 if nowhere."""
    known = known.expand_as(values)
    return values.where(known, 0).sum() / known.sum().clamp(min=1)
