"""Benchmarks of the zoo's own, which need no download: small counterparts of published ones, and what draws them."""

from zoo.datasets.twins.clips import ClipsBenchmark
from zoo.datasets.twins.digits import DigitsBenchmark
from zoo.datasets.twins.pentathlon import PentathlonBenchmark
from zoo.datasets.twins.rooms import RoomsBenchmark
from zoo.datasets.twins.shapes import ShapesBenchmark
from zoo.datasets.twins.shapes2 import ShapesInTwoBenchmark

__all__ = [
    "ClipsBenchmark", "DigitsBenchmark", "PentathlonBenchmark", "RoomsBenchmark", "ShapesBenchmark",
    "ShapesInTwoBenchmark",
]  # fmt: skip
