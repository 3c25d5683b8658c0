"""Images decoded and resized once, kept as bytes in the cache, and read from there in every further epoch.

What is kept is what the fixed first steps of a transform make of each image; where the first step is random, that is
the decoded image itself. Training on it ends with the same weights, bit for bit.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torchvision
from torch.utils.data import ConcatDataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.catalog.task import Bands
from zoo.datasets.base import Images, Relabelled
from zoo.datasets.images import Box, ListedImages
from zoo.errors import DataError, OptionError, WeightsError
from zoo.storage import resources
from zoo.storage.files import sha256

log = logging.getLogger(__name__)
FORMAT = 1
FIXED = (Bands, v2.Resize, v2.CenterCrop)  # steps that do the same to an image each time
PIXELS, SHAPES = "pixels.bin", "shapes.npy"

Step = Callable[..., Any]


class Source(NamedTuple):
    """What one image is made of, and its label."""

    path: Path
    box: Box | None
    open: Callable[..., Any]
    label: int


def cached(images: Images, transform: v2.Compose) -> tuple[Images, v2.Compose]:
    """The images as the first steps of a transform make them, from the cache, and the steps that are left.

    The first time, all are decoded and written to the cache. They are known by the files' contents, by these steps,
    and by the versions of the libraries that decode and resize.

    Raises:
        OptionError: they are no image files with a label each.
        DataError: one of them cannot be read, or does not decode.
        WeightsError: the cache cannot be written.
    """
    sources = _sources(images)
    if sources is None:
        raise OptionError("A cache keeps image files with a label each; this task's images are something else.")
    fixed = list(itertools.takewhile(lambda step: isinstance(step, FIXED), transform.transforms))
    folder = resources.cache_dir() / "images" / _key(sources, fixed)
    if not _whole(folder, len(sources)):
        _fill(folder, sources, v2.Compose(fixed))
    return CachedImages(folder, [source.label for source in sources]), v2.Compose(transform.transforms[len(fixed) :])


def _sources(images: Any) -> list[Source] | None:
    """The file of each image; None where there are other images than files."""
    if isinstance(images, ListedImages) and images.transform is None:
        boxes: Sequence[Box | None] = images.boxes or [None] * len(images)
        pairs = zip(images.items, boxes, strict=True)
        return [Source(path, box, images.open, label) for (path, label), box in pairs]
    if isinstance(images, Subset):
        inner = _sources(images.dataset)
        return inner and [inner[index] for index in images.indices]
    if isinstance(images, Relabelled):
        inner = _sources(images.images)
        return inner and [inner[place]._replace(label=label) for place, label in images.items]
    if isinstance(images, ConcatDataset):
        parts = [_sources(part) for part in images.datasets]
        return None if None in parts else [source for part in parts for source in part or ()]
    return None


def _key(sources: Sequence[Source], steps: Sequence[Step]) -> str:
    found = hashlib.sha256(repr((FORMAT, steps, PIL.__version__, torch.__version__, torchvision.__version__)).encode())
    for source in sources:
        try:
            content = sha256(source.path)
        except OSError as error:
            raise DataError(
                f"{source.path} cannot be read: {error.strerror}. Fetch it again or leave it out."
            ) from error
        found.update(f"{content} {source.box} {source.open.__name__}\n".encode())
    return found.hexdigest()[:32]


def _whole(folder: Path, count: int) -> bool:
    """Whether a cache is there, and is all that it should be."""
    try:
        shapes = np.load(folder / SHAPES, allow_pickle=False)
        return len(shapes) == count and (folder / PIXELS).stat().st_size == shapes.prod(1).sum()
    except (OSError, ValueError, EOFError):
        return False


def _fill(folder: Path, sources: Sequence[Source], steps: Step) -> None:
    """Write a cache: all of it, or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            own = Path(temporary) / folder.name
            own.mkdir()
            shapes = []
            with open(own / PIXELS, "wb") as file:
                for source in sources:
                    image = steps(source.open(source.path, source.box) if source.box else source.open(source.path))
                    shapes.append(image.shape)
                    file.write(image.contiguous().numpy().tobytes())
            np.save(own / SHAPES, np.array(shapes, np.int64))
            if _whole(folder, len(sources)):  # another process was quicker
                return
            shutil.rmtree(folder, ignore_errors=True)
            own.rename(folder)
    except OSError as error:
        if _whole(folder, len(sources)):
            return
        raise WeightsError(f"Cannot write the cache {folder}: {error.strerror or error}. Train without it.") from error
    log.info("%s: %d images, %.0f MB", folder, len(sources), (folder / PIXELS).stat().st_size / 1e6)


class CachedImages(Images):
    """The images of a cache, memory-mapped, as uint8 tensors (C, H, W)."""

    def __init__(self, folder: Path, labels: Sequence[int]) -> None:
        self.folder, self.labels = folder, list(labels)
        self.shapes = np.load(folder / SHAPES, allow_pickle=False)
        self.ends = self.shapes.prod(1).cumsum()
        self._pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # which each process maps for itself

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, "r")
        shape, end = self.shapes[index], self.ends[index]
        values = np.array(self._pixels[end - shape.prod() : end]).reshape(shape)
        return tv_tensors.Image(torch.from_numpy(values)), self.labels[index]
