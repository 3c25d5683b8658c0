"""Trained models as smaller ones, without training, and what their layers hold.

Training goes on from there in `zoo.training`; weights as rings are made in `zoo.ring`.
"""

from zoo.compression.factors import begin_jointly, compress, compress_entry, compressed_entry, joint_factors
from zoo.compression.fine_tuned import Factorised, factorise
from zoo.compression.small_files import factorised_entry

__all__ = [
    "Factorised", "begin_jointly", "compress", "compress_entry", "compressed_entry", "factorise", "factorised_entry",
    "joint_factors",
]  # fmt: skip
