"""Weights in tensor-ring format (TRMTL, Section 3.1): the format, layers in it, and dense layers brought into it.

What several networks' rings have in common is `zoo.joint`'s.
"""

from zoo.ring.cores import Ring
from zoo.ring.layers import TRLSTM, RingLayer, TRConv2d, TRLinear
from zoo.ring.modes import balanced, balanced_pair
from zoo.ring.svd import convert, to_ring

__all__ = ["TRLSTM", "Ring", "RingLayer", "TRConv2d", "TRLinear", "balanced", "balanced_pair", "convert", "to_ring"]
