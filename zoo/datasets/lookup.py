"""Benchmarks by name."""

from __future__ import annotations

from zoo.catalog.entry import Entry
from zoo.datasets.base import Benchmark
from zoo.datasets.cifar import Cifar10In3Benchmark
from zoo.datasets.clip5 import Clip5Benchmark
from zoo.datasets.decathlon import DecathlonBenchmark, DecathlonImageNetBenchmark
from zoo.datasets.domainnet import DomainNetBenchmark, JointDomainNetBenchmark
from zoo.datasets.emoji import EmojiBenchmark
from zoo.datasets.faces import FacesBenchmark
from zoo.datasets.folder import FolderBenchmark
from zoo.datasets.images import Readable
from zoo.datasets.mnist import OddEvenBenchmark
from zoo.datasets.nyud import NYUDBenchmark
from zoo.datasets.officehome import OfficeHomeBenchmark
from zoo.datasets.omniglot import Omniglot5Benchmark, OmniglotMnistBenchmark
from zoo.datasets.pictures import PicturesBenchmark
from zoo.datasets.places import PlacesBenchmark
from zoo.datasets.scenery import SceneryBenchmark
from zoo.datasets.seasons import SeasonsBenchmark
from zoo.datasets.sketch import SketchBenchmark
from zoo.datasets.streets import StreetsBenchmark
from zoo.datasets.twins.clips import ClipsBenchmark
from zoo.datasets.twins.digits import DigitsBenchmark
from zoo.datasets.twins.landscapes import LandscapesBenchmark
from zoo.datasets.twins.pentathlon import PentathlonBenchmark
from zoo.datasets.twins.rooms import RoomsBenchmark
from zoo.datasets.twins.shapes import ShapesBenchmark
from zoo.datasets.twins.shapes2 import ShapesInTwoBenchmark
from zoo.datasets.ucf11 import Ucf11Benchmark
from zoo.errors import UnknownNameError

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        ShapesBenchmark("shapes"), ShapesBenchmark("shapes_source"), PentathlonBenchmark(), FolderBenchmark(),
        SketchBenchmark(), DomainNetBenchmark(), JointDomainNetBenchmark(), DecathlonBenchmark(),
        DecathlonImageNetBenchmark(), PlacesBenchmark(), Clip5Benchmark(), RoomsBenchmark(), NYUDBenchmark(),
        OddEvenBenchmark(), DigitsBenchmark(), Omniglot5Benchmark(), OmniglotMnistBenchmark(), Cifar10In3Benchmark(),
        ShapesInTwoBenchmark(), Ucf11Benchmark(), ClipsBenchmark(), OfficeHomeBenchmark(), FacesBenchmark(),
        PicturesBenchmark(), EmojiBenchmark(), StreetsBenchmark(), LandscapesBenchmark(),
        SceneryBenchmark(), SeasonsBenchmark(),
    )
}  # fmt: skip


def get_benchmark(name: str, skip_unreadable: bool = False, test_share: float | None = None) -> Benchmark:
    """The benchmark that the registry calls `name`.

    Args:
        skip_unreadable: leave out images that do not decode, each with a warning, instead of raising DataError.
        test_share: of folders of one's own without images to test on.
    """
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    benchmark = FolderBenchmark(test_share) if name == FolderBenchmark.name else BENCHMARKS[name]
    return Readable(benchmark) if skip_unreadable and benchmark.needs_root else benchmark


def benchmark_of(entry: Entry, skip_unreadable: bool = False) -> Benchmark:
    """The benchmark of an entry, its images parted as they were when it was trained."""
    return get_benchmark(entry.benchmark, skip_unreadable, entry.test_share)
