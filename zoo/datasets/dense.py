"""Targets that are maps, and what happens to them when their image is enlarged, cropped or mirrored.

They are torchvision's tv_tensors, so that torchvision's transforms know what to do: labels of segmentation and of edges
are a `Mask`; the kinds below are masks too, in that they are never interpolated, for a value between two depths is
no depth that anything has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from zoo.errors import DataError
from zoo.kinds import IGNORE, get_kind
from zoo.kinds.base import DenseKind


class DepthMap(tv_tensors.Mask):  # type: ignore[misc]
    """Metres (1, H, W); 0 where unknown."""


class NormalMap(tv_tensors.Mask):  # type: ignore[misc]
    """Unit vectors (3, H, W), the first coordinate of which is to the right; of no length where unknown."""


# What stands beyond an image's border: nothing is known there.
FILL: dict[type, int] = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE, DepthMap: 0, NormalMap: 0}
FORMS = {"segmentation": tv_tensors.Mask, "edges": tv_tensors.Mask, "depth": DepthMap, "normals": NormalMap}


@F.register_kernel(functional="horizontal_flip", tv_tensor_cls=NormalMap)  # type: ignore[untyped-decorator]
def _mirror(normals: NormalMap, *_: Any, **__: Any) -> Any:
    mirrored = normals.as_subclass(Tensor).flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    return tv_tensors.wrap(mirrored, like=normals)


class Zoom(v2.Transform):  # type: ignore[misc]
    """Enlarge an image and its target by a random factor, as if the camera were nearer: depths are divided by it."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = float(torch.empty(()).uniform_(self.low, self.high))
        height, width = v2.query_size(flat_inputs)
        return {"factor": factor, "size": [round(factor * height), round(factor * width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        larger = self._call_kernel(F.resize, inpt, params["size"], antialias=True)
        return tv_tensors.wrap(larger / params["factor"], like=inpt) if isinstance(inpt, DepthMap) else larger


def zoomed(factors: Sequence[float], shape: tuple[int, int]) -> list[v2.Transform]:
    """The transforms of a random zoom to one of so many pixels, padded where that is too small."""
    return [Zoom(*factors), v2.RandomCrop(shape, pad_if_needed=True, fill=FILL)]


def target_map(values: Tensor, kind: str, outputs: int, size: tuple[int, int], where: object) -> tv_tensors.Mask:
    """A target that was read, in the form that its kind of task needs.

    Args:
        values: labels (H, W), metres (1, H, W) or vectors (3, H, W).
        outputs: classes or channels of the task.
        size: (height, width) of the image that it belongs to.
        where: it was read from.

    Raises:
        DataError: it is not of that size, or holds what it cannot hold.
    """
    known = get_kind(kind)
    assert isinstance(known, DenseKind)
    try:
        known.check(values, outputs)
    except DataError as error:
        raise DataError(f"{where} {error}.") from None
    if tuple(values.shape[-2:]) != tuple(size):
        found, wanted = ("×".join(map(str, shape)) for shape in (values.shape[-2:], size))
        raise DataError(f"{where} has {found} pixels, but its image {wanted}; a target needs those of its image.")
    dtype = torch.float32 if values.is_floating_point() else torch.int64
    return FORMS[kind](values.to(dtype))
