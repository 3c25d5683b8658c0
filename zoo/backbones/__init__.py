"""Backbones by name: `zoo/NAME@WEIGHTS`, `torchvision/NAME`, `torchvision/NAME@WEIGHTS` and `timm/NAME`, tag included.

`deeplab/` before the name of one of the zoo's or timm's makes it the encoder of a DeepLabv3+.

The zoo's own weights are listed in its registry. torchvision publishes its weights as `.pth` files only: they are
downloaded from the address that torchvision states, checked against the SHA-256 digits in their name, and read by
torch's restricted `weights_only` reader, which makes tensors and plain containers and runs no code.
"""

from __future__ import annotations

import functools
import pickle  # for the name of an error alone
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.backbones.deeplab import ENCODER, deeplab, deeplab_resnet20
from zoo.backbones.resnet26 import ResNet26
from zoo.backbones.resnet_cifar import resnet20
from zoo.backbones.vit import vit_micro
from zoo.catalog.registry import Registry
from zoo.catalog.store import stored_backbone
from zoo.errors import OptionError, UnknownNameError, WeightsError
from zoo.storage.fetch import download, fetch, hub_file
from zoo.storage.tensors import read

DEEPLAB = "deeplab/"  # begins the name of an encoder with a decoder after it
WIDTHS = (0.5, 1.5, 2.0, 2.5)  # of resnet26, beside 1
OWN: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "resnet26": ResNet26,
    **{f"resnet26x{width}": functools.partial(ResNet26, width) for width in WIDTHS},
    "vit_micro": vit_micro,
}


def build(name: str) -> nn.Module:
    """The architecture that a backbone's name means, with fresh weights; downloads nothing.

    Raises:
        UnknownNameError: no library of the zoo's has such an architecture; the nearest names are listed.
    """
    library, _, rest = name.partition("/")
    architecture = rest if library == "timm" else rest.partition("@")[0]  # a tag of timm's names weights alone
    if library == "zoo":
        if architecture not in OWN:
            raise UnknownNameError("backbone", name, [f"zoo/{own}" for own in OWN])
        return OWN[architecture]()
    if library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if architecture not in known:
            raise UnknownNameError("backbone", f"torchvision/{architecture}", [f"torchvision/{n}" for n in known])
        return torchvision.models.get_model(architecture, weights=None)  # type: ignore[no-any-return]
    if library == "timm":
        import timm

        known = [*timm.list_models(), *timm.list_pretrained()]
        if architecture not in known:
            raise UnknownNameError("backbone", f"timm/{architecture}", [f"timm/{n}" for n in known])
        return timm.create_model(architecture, pretrained=False)
    if library == "deeplab":
        return _deeplab(name, architecture)
    raise UnknownNameError("backbone", name, ["zoo/…", "torchvision/…", "timm/…", "deeplab/zoo/…", "deeplab/timm/…"])


def _deeplab(name: str, encoder: str) -> nn.Module:
    if encoder == "zoo/resnet20":
        return deeplab_resnet20()
    library, _, architecture = encoder.partition("/")
    import timm

    known = timm.list_models()
    if library != "timm" or architecture.partition(".")[0] not in known:
        raise UnknownNameError("backbone", name, ["deeplab/zoo/resnet20", *(f"deeplab/timm/{each}" for each in known)])
    try:
        return deeplab(architecture)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"timm's {architecture} gives no maps of features at strides 4 and 16: {error}") from error


def pretrained_tensors(name: str, registry: Registry, file: Path | None = None) -> dict[str, Tensor]:
    """The pre-trained weights that a backbone's name means; a classifier's may be among them.

    Args:
        file: a safetensors file to read instead; for a DeepLabv3+, of its encoder.

    Raises:
        WeightsError: the weights cannot be had.
    """
    if name.startswith(DEEPLAB):
        own = build(name).state_dict()
        found = pretrained_tensors(name.removeprefix(DEEPLAB), registry, file)
        return {f"{ENCODER}{key}": tensor for key, tensor in found.items() if f"{ENCODER}{key}" in own}  # no classifier
    if file is not None:
        return read(file)[0]
    library, _, rest = name.partition("/")
    architecture, _, tag = rest.partition("@")
    if library == "torchvision":
        return _torchvision_tensors(architecture, tag)
    if library == "timm":
        return _timm_tensors(rest)
    known, stored = registry.backbone(name), stored_backbone(name)
    if known is not None and known.weights is not None:
        return read(fetch(known.weights, known.folder))[0]
    if known is not None and stored.exists():
        return read(stored)[0]
    if known is not None:
        raise WeightsError(f"No weights of the backbone {name!r} are published. Train it with `zoo train {name}`.")
    raise WeightsError(
        f"There are no weights for the backbone {name!r}; name a file with --backbone-weights. "
        f"The zoo's own with weights: {', '.join(registry.backbones()) or 'none'}."
    )


def _torchvision_tensors(architecture: str, tag: str) -> dict[str, Tensor]:
    import torchvision

    choices = torchvision.models.get_model_weights(architecture)
    try:
        url = (choices[tag] if tag else choices["DEFAULT"]).url
    except KeyError:
        raise UnknownNameError(f"weights of torchvision/{architecture}", tag, choices.__members__) from None
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    if match is None:
        raise WeightsError(
            f"torchvision states no SHA-256 for {url}; name a safetensors file of these weights instead."
        )
    path = download(url, match[1])
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} holds more than tensors; torch's restricted reader refuses it: {error}") from error
    # densenet's files are older than its code: `denselayer1.norm.1.weight` is called `denselayer1.norm1.weight` now.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): value for key, value in tensors.items()}


def _timm_tensors(architecture: str) -> dict[str, Tensor]:
    import timm

    config = timm.get_pretrained_cfg(architecture) if timm.is_model_pretrained(architecture) else None
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no weights on the Hugging Face Hub for {architecture!r}.")
    return read(hub_file(config.hf_hub_id, "model.safetensors"))[0]
