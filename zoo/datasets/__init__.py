"""Benchmarks: tasks, classes and images. One file per benchmark, in its publisher's layout; `twins` has the zoo's own.

How images are augmented and put in batches is known to `zoo.training`.
"""

from zoo.datasets.base import Benchmark, Counts, Images, Splits, Transformed, fraction_of, held_out, some_of
from zoo.datasets.images import open_image
from zoo.datasets.lookup import BENCHMARKS, benchmark_of, get_benchmark

__all__ = [
    "BENCHMARKS", "Benchmark", "Counts", "Images", "Splits", "Transformed", "benchmark_of", "fraction_of",
    "get_benchmark", "held_out", "open_image", "some_of",
]  # fmt: skip
