"""Resizing inside a graph: any image in, the network's input out, as torchvision makes it of uint8 images.

An antialiased resize is one matrix for the rows and one for the columns (Pillow's `ImagingResample`, which torchvision
follows), whose weights depend on the image's size alone. A crop takes rows of these matrices. This is arithmetic of
any graph's, unlike ONNX's operator Resize, whose antialiasing some providers lack.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from zoo.catalog.task import Preprocessing
from zoo.errors import ExportError

RADIUS = {"bilinear": 1.0, "bicubic": 2.0}  # of the kernels, in pixels of the coarser of the two grids
A = -0.5  # the cubic kernel's parameter, where it is antialiased


class Resize(nn.Module):
    """uint8 images (B, H, W, C) of any height and width to float32 ones (B, C, height, width) of whole numbers to 255.

    Rows are resampled before columns and rounded in between, as for uint8 images. So the result is that of
    torchvision's `Resize(antialias=True)` and `CenterCrop`, but for one or two levels of 255 at some pixels, since it
    weighs in whole numbers.

    Raises:
        ExportError: the interpolation is to the nearest pixel, which is no weighted mean.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        if preprocessing.interpolation not in RADIUS:
            raise ExportError(
                f"Only {' and '.join(RADIUS)} resizing goes into a graph, not {preprocessing.interpolation}: resize "
                "before it, and export with --preprocess alone."
            )
        self.shape, self.resize, self.kind = preprocessing.shape, preprocessing.resize, preprocessing.interpolation

    def forward(self, images: Tensor) -> Tensor:
        x = images.movedim(-1, -3).float()
        places = [torch.arange(side, dtype=torch.float64, device=x.device) for side in images.shape[-3:-1]]
        rows, columns = (self._weights(axis, places) for axis in (0, 1))
        x = _whole(x @ columns.T)
        return _whole(rows @ x)

    def _weights(self, axis: int, places: list[Tensor]) -> Tensor:
        """The weight of each of an image's pixels in each of the crop along an axis, (cropped, pixels).

        Args:
            places: 0, 1, … of the pixels along both axes. How many there are is computed, for it is a number of the
                graph and not of Python.
        """
        sides = [torch.ones_like(each).sum() for each in places]
        wanted, pixels, shorter = self.shape[axis], sides[axis], torch.minimum(*sides)
        if self.resize is None:
            resized = torch.full_like(shorter, wanted)
        else:  # in torchvision's order, and cut off as its int() does
            resized = torch.floor(self.resize * pixels / shorter)
        first = torch.round((resized - wanted) / 2)
        scale = pixels / resized
        widened = scale.clamp(min=1)
        centres = scale * (torch.arange(wanted, dtype=torch.float64, device=pixels.device) + first + 0.5)
        support = RADIUS[self.kind] * widened
        begin = torch.floor(centres - support + 0.5).clamp(min=0)
        end = torch.minimum(torch.floor(centres + support + 0.5), pixels)
        weights = _kernel((places[axis] + 0.5 - centres[:, None]) / widened, self.kind)
        weights = weights * ((places[axis] >= begin[:, None]) & (places[axis] < end[:, None]))
        return (weights / weights.sum(1, keepdim=True)).float()


def levels_off(preprocessing: Preprocessing, batches: Iterable[Tensor]) -> int:
    """By how many levels of 255 images (B, H, W, C) are at most resized otherwise than by torchvision."""
    resize, transform = Resize(preprocessing), preprocessing.transform()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    most = 0.0
    for image in (image for batch in batches for image in batch):
        theirs = (255 * (transform(image.movedim(-1, -3)) * std + mean)).round()
        most = max(most, float((resize(image[None])[0] - theirs).abs().max()))
    return round(most)


def _whole(x: Tensor) -> Tensor:
    """Rounded as uint8 images are: halves upwards."""
    return torch.floor(x + 0.5).clamp(0, 255)


def _kernel(x: Tensor, kind: str) -> Tensor:
    x = x.abs()
    if kind == "bilinear":
        return (1 - x).clamp(min=0)
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
