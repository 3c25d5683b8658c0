"""What an earlier version wrote still loads, and gives what it gave.

tests/earlier/0.1.0 holds what version 0.1.0 made of a folder of two classes, and LOGITS what it then answered:
`zoo train --backbone zoo/resnet20@shapes --data DIR --rank 1 --out OUT`.
"""

from __future__ import annotations

from pathlib import Path

import torch

import zoo
from zoo.catalog.registry import Registry, default_registry

FOLDER = Path(__file__).parent / "earlier" / "0.1.0"
LOGITS = torch.tensor([[0.6932123899459839, 0.14205136895179749], [0.6927967667579651, 0.1911034733057022]])
NAME = "resnet20_shapes-ftn-r1-animals"


def test_a_registry_and_an_adapter_of_0_1_0() -> None:
    registry = default_registry().merged(Registry.read(FOLDER / "registry.yaml"))
    entry = registry.entry(NAME)
    assert (entry.method, entry.classes) == ({"name": "ftn", "rank": 1}, {"photo": 2})
    assert (entry.measured, entry.data_root) == ({"photo": 50.0}, "/data/animals")
    model = zoo.load(NAME, registry=registry)  # its size and hash are checked
    assert model.task("photo").classes == ("cat", "dog")
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        logits = model.fuse("photo")(images)
    torch.testing.assert_close(
        logits,
        LOGITS,
        rtol=1e-4,
        atol=1e-4,
    )
