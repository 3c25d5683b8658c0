"""Packaged entries against what the registry claims of them."""

from __future__ import annotations

import pytest

from tests.training.test_runs import zoo


def test_without_the_images_files_and_parameters_are_checked() -> None:
    out = zoo("verify", "efficientnet_lite0-ftn-r4-pictures")
    assert out.count("bytes, sha256") == 3
    assert "parameters" in out
    assert "not measured: that needs the images of the benchmark" in out


@pytest.mark.parametrize(
    "name",
    [
        "zoo/resnet20@shapes",
        *(f"resnet20-{m}-shapes" for m in ("features", "bn", "ftn-r1", "finetune", "series", "parallel_svd")),
    ],
)
def test_the_registrys_accuracy_is_measured_again(name: str) -> None:
    out = zoo("verify", name)
    assert "accuracy" in out
    assert " no " not in out
