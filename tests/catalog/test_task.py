"""What tasks say of their figures, and of their images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from zoo.catalog.task import CLASSIFICATION, METRICS, Preprocessing


@pytest.mark.parametrize("images", [10, 60, 218, 2903])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.783, 0.9, 0.98])
def test_what_a_test_set_leaves_open_covers_the_truth_in_most_cases(images: int, share: float) -> None:
    """By the exact probabilities of each number of right answers; the interval lies around its own, shrunken centre."""
    right = np.arange(images + 1)
    told = [METRICS[CLASSIFICATION].told(100 * k / images, images) for k in right]
    half = np.array([float(text.rpartition("± ")[2].rstrip(")")) / 100 for text in told])
    centre = (right + 2) / (images + 4)
    covered = np.abs(centre - share) <= half + 0.005  # told in whole points
    assert binom.pmf(right, images, share)[covered].sum() >= 0.92
    assert f"{100 * share:.1f} % ({images:,} images, ± " in METRICS[CLASSIFICATION].told(100 * share, images)


def test_preprocessing_in_words() -> None:
    card = Preprocessing(224, 256, (0.5,) * 3, (0.25,) * 3, interpolation="bicubic")
    geometry, numbers = "shorter side to 256 pixels, centre crop of 224×224, bicubic", "mean (0.5, 0.5, 0.5)"
    assert card.words() == f"{geometry}, {numbers}, deviation (0.25, 0.25, 0.25)"
    assert Preprocessing(48, None, (0.5,), (1,), width=64).words().startswith("resized to 48×64 pixels, bilinear")
