"""Benchmarks by name. One file per source of images."""

from __future__ import annotations

from zoo.datasets.base import Benchmark, Images, Splits, Transformed
from zoo.datasets.folder import FolderBenchmark, open_image
from zoo.datasets.shapes import ShapesBenchmark
from zoo.errors import UnknownNameError

__all__ = ["Benchmark", "Images", "Splits", "Transformed", "get_benchmark", "open_image"]


def get_benchmark(name: str, skip_unreadable: bool = False) -> Benchmark:
    """The benchmark that the registry calls `name`.

    DomainNet and ImageNet-to-Sketch are read from folders in the layout of `folder.py`, below
    `<data root>/domainnet` and `<data root>/sketch`.
    """
    if name in ("shapes", "shapes_source"):
        return ShapesBenchmark(name)
    if name == "folder":
        return FolderBenchmark(skip_unreadable=skip_unreadable)
    if name in ("domainnet", "sketch"):
        return FolderBenchmark(name, name, skip_unreadable)
    raise UnknownNameError("benchmark", name, ["shapes", "shapes_source", "folder", "domainnet", "sketch"])
