"""Images resized in the graph, against torchvision's own transforms of Pillow's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from zoo.export import run, session, to_onnx
from zoo.export.resizing import Resize

from zoo.catalog.task import Preprocessing, Task
from zoo.errors import ExportError


@st.composite
def preparations(draw: st.DrawFn) -> Preprocessing:
    size, width = draw(st.integers(1, 64)), draw(st.none() | st.integers(1, 64))
    resize = draw(st.none() | st.integers(max(size, width or 0), 80))
    return Preprocessing(size, resize, width=width, interpolation=draw(st.sampled_from(["bilinear", "bicubic"])))


@settings(deadline=None, max_examples=80)
@given(preparations(), st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**31))
def test_pixels_are_torchvisions(preprocessing: Preprocessing, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shorter = preprocessing.resize or 1
    if shorter * max(height, width) / min(height, width) > 4000:  # a thread of pixels, which nobody has
        return
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    theirs = 255 * (preprocessing.transform()(Image.fromarray(pixels)) * std + mean)
    found = Resize(preprocessing)(torch.from_numpy(pixels)[None])[0]
    assert found.shape == theirs.shape
    difference = (found - theirs).abs()
    assert float(difference.max()) < 2.5  # of 255; noise enlarged by the cubic kernel is the worst there is
    assert difference.numel() < 500 or float(difference.mean()) < 0.2


class Mean(nn.Module):
    """The mean of each channel, which shows what arrives."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


@pytest.mark.parametrize("resize", [None, 40])
def test_a_graph_takes_images_of_any_size(tmp_path: Path, resize: int | None) -> None:
    task = Task("t", ("r", "g", "b"), Preprocessing(32, resize, interpolation="bicubic"))
    parity = to_onnx(Mean(), tmp_path / "t.onnx", task=task, preprocess="full")
    assert "levels of torchvision" in str(parity)
    assert parity.levels is not None
    assert parity.levels <= 2
    made = session(tmp_path / "t.onnx")
    for rows, height, width in ((1, 33, 57), (3, 200, 120), (2, 20, 20)):
        images = torch.randint(0, 256, (rows, height, width, 3), dtype=torch.uint8)
        inputs = torch.stack([task.preprocessing.transform()(image.movedim(-1, 0)) for image in images])
        np.testing.assert_allclose(run(made, images.numpy()), Mean()(inputs).numpy(), atol=0.01)


def test_what_cannot_be_resized_in_a_graph_is_refused(tmp_path: Path) -> None:
    nearest = Task("t", ("r", "g", "b"), Preprocessing(32, None, interpolation="nearest"))
    with pytest.raises(ExportError, match="not nearest"):
        to_onnx(Mean(), tmp_path / "t.onnx", task=nearest, preprocess="full")
    with pytest.raises(ExportError, match="preprocess is False"):
        to_onnx(Mean(), tmp_path / "t.onnx", preprocess="all")
    assert not list(tmp_path.iterdir())
