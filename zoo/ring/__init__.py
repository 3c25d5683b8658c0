"""Weights in tensor-ring format (TRMTL, Section 3.1): the format, layers in it, and dense layers brought into it."""

from zoo.ring.cores import Ring
from zoo.ring.layers import TRLSTM, RingLayer, TRConv2d, TRLinear
from zoo.ring.modes import balanced, balanced_pair

__all__ = ["TRLSTM", "Ring", "RingLayer", "TRConv2d", "TRLinear", "balanced", "balanced_pair"]
