"""odsF, how well edges are found: the F-measure of BSDS (Martin et al., PAMI 2004) at the data set's best threshold.

An image of probabilities is cut at each threshold and thinned to lines one pixel wide. A pixel found and a true one
may be matched where they lie within a tolerance of each other, each with at most one other. Precision is the share of
found pixels that are matched, recall that of the true ones, both summed over all images; odsF is the best of
2PR / (P + R) over the thresholds.

BSDS matches by a minimum-cost assignment in which leaving a pixel out costs more than any match, so that as many as
possible are matched; here that number is found as a maximum flow, without the distances, which odsF never asks for.
Its curve is not interpolated between the thresholds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from skimage.morphology import thin
from torch import Tensor
from torchmetrics import Metric

from zoo.kinds.base import IGNORE

Mask = npt.NDArray[np.bool_]
TOLERANCE = 0.011  # of the image's diagonal, as for NYUD; BSDS takes 0.0075
LEAST = 1.5  # pixels, so that neighbours can be matched in small images too
THRESHOLDS = 99


class ODSF(Metric):
    """Gathers what odsF, in [0, 1], is made of.

    Args:
        tolerance: how far a pixel may lie from the one it is matched with, as a share of the image's diagonal.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        super().__init__()
        self.tolerance = tolerance
        # For each threshold: pixels matched, found and true.
        self.add_state("counts", torch.zeros(THRESHOLDS, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Take probabilities (B, H, W) and targets (B, H, W): 1 on an edge, 0 off it, 255 where unknown."""
        radius = max(LEAST, self.tolerance * math.hypot(*targets.shape[-2:]))
        for found, true in zip(probabilities.cpu().numpy(), targets.cpu().numpy(), strict=True):
            self.counts += torch.from_numpy(_counts(found * (true != IGNORE), true == 1, radius)).to(self.counts)

    def compute(self) -> Tensor:
        matched, found, true = self.counts.T
        if not (found + true).any():
            return torch.tensor(torch.nan)  # there is nothing to find, and nothing found
        best: Tensor = (2 * matched / (found + true).clamp(min=1)).max()  # 2PR / (P + R), P and R of the same matches
        return best


def _counts(probabilities: npt.NDArray[np.floating], true: Mask, radius: float) -> npt.NDArray[np.float64]:
    """Pixels matched, found and true of one image at each threshold, (thresholds, 3)."""
    counts = np.zeros((THRESHOLDS, 3))
    before, last = None, (0, 0)
    for i in range(THRESHOLDS):
        found = probabilities >= (i + 1) / (THRESHOLDS + 1)
        if before is None or not np.array_equal(found, before):
            lines: Mask = thin(found)  # type: ignore[no-untyped-call]
            before, last = found, (matches(lines, true, radius), int(lines.sum()))
        counts[i] = *last, true.sum()
    return counts


def matches(found: Mask, true: Mask, radius: float) -> int:
    """How many pixels of `found` and of `true` can be paired off, each pair within `radius` pixels of each other.

    That is the greatest flow from a source by way of the true pixels and the found ones near them to a sink, where one
    unit passes through each pixel.
    """
    rows, columns = np.nonzero(true)
    reach, left, right = int(radius), len(rows), int(found.sum())
    number = np.full(np.add(found.shape, 2 * reach), -1)  # of each found pixel, in a frame as wide as the radius
    number[reach : reach + found.shape[0], reach : reach + found.shape[1]][found] = np.arange(right)
    steps = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if math.hypot(y, x) <= radius]
    near = np.stack([number[rows + reach + y, columns + reach + x] for y, x in steps], 1)  # (true pixels, steps)
    pixel, step = np.nonzero(near >= 0)
    source, sink = left + right, left + right + 1
    start = np.concatenate([np.full(left, source), pixel, left + np.arange(right)])
    end = np.concatenate([np.arange(left), left + near[pixel, step], np.full(right, sink)])
    graph = csr_array((np.ones(len(start), np.int32), (start, end)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, source, sink).flow_value)
