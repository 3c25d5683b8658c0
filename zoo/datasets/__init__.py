"""Benchmarks by name. One file per source of images."""

from __future__ import annotations

from zoo.datasets.base import Benchmark, Counts, Images, Splits, Transformed, fraction_of, held_out
from zoo.datasets.clip5 import Clip5Benchmark
from zoo.datasets.decathlon import DecathlonBenchmark, DecathlonImageNetBenchmark
from zoo.datasets.domainnet import DomainNetBenchmark, JointDomainNetBenchmark
from zoo.datasets.folder import FolderBenchmark
from zoo.datasets.images import Readable, open_image
from zoo.datasets.nyud import NYUDBenchmark
from zoo.datasets.pentathlon import PentathlonBenchmark
from zoo.datasets.places import PlacesBenchmark
from zoo.datasets.rooms import RoomsBenchmark
from zoo.datasets.shapes import ShapesBenchmark
from zoo.datasets.sketch import SketchBenchmark
from zoo.errors import UnknownNameError

__all__ = [
    "BENCHMARKS", "Benchmark", "Counts", "Images", "Splits", "Transformed", "fraction_of", "get_benchmark",
    "held_out", "open_image"
]  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        ShapesBenchmark("shapes"), ShapesBenchmark("shapes_source"), PentathlonBenchmark(), FolderBenchmark(),
        SketchBenchmark(), DomainNetBenchmark(), JointDomainNetBenchmark(), DecathlonBenchmark(),
        DecathlonImageNetBenchmark(), PlacesBenchmark(), Clip5Benchmark(), RoomsBenchmark(), NYUDBenchmark(),
    )
}  # fmt: skip


def get_benchmark(name: str, skip_unreadable: bool = False) -> Benchmark:
    """The benchmark that the registry calls `name`.

    Args:
        skip_unreadable: leave out images that do not decode, each with a warning, instead of raising DataError.
    """
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    return Readable(benchmark) if skip_unreadable and benchmark.needs_root else benchmark
