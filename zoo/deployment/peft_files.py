"""A LoRA checkpoint of Hugging Face PEFT as it lies on disk.

PEFT writes a folder: adapter_config.json, and adapter_model.safetensors with the factors of each layer and the modules
that were trained whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import OptionError, WeightsError
from zoo.storage.files import read_text
from zoo.storage.tensors import counters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HARMLESS = {  # settings of PEFT's that are acted on, or that do not change what a trained checkpoint computes
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "target_modules",
    "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config",
    "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
INITIAL = (True, False, "gaussian", "eva", "orthogonal")  # ways to begin that leave the backbone's weights alone


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings, of which none is beyond `lora`."""
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"There is no {folder / CONFIG}; a PEFT checkpoint is a folder with one.")
    try:
        config = json.loads(read_text(folder / CONFIG))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings by name")
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{folder / CONFIG} does not read ({error}). Save the adapter again.") from error
    if config.get("peft_type") != "LORA":
        raise OptionError(f"{folder / CONFIG} is no LoRA checkpoint: its peft_type is {config.get('peft_type')!r}.")
    odd = {
        key: value
        for key, value in config.items()
        if key not in HARMLESS and value and (key, value) != ("bias", "none")
    }
    if config.get("init_lora_weights", True) not in INITIAL:  # PiSSA and others take their start off the backbone
        odd["init_lora_weights"] = config["init_lora_weights"]
    if odd:
        settings = ", ".join(f"{key}={value!r}" for key, value in odd.items())
        raise OptionError(f"{folder} was trained with {settings}, which has no counterpart in the zoo's LoRA.")
    return config


def sort_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The factors (A, B) by layer, and the tensors of modules that were trained whole."""
    found: dict[str, dict[str, Tensor]] = {}
    saved = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if not tensor.is_floating_point() and not counters({name: tensor}):
            raise WeightsError(
                f"The checkpoint's {key} holds {tensor.dtype}, and no real numbers. Save the adapter again."
            )
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            found.setdefault(match[1], {})[match[2]] = tensor.float()
        elif "lora_" in name:
            raise OptionError(f"The checkpoint holds {key}, which has no counterpart in the zoo's LoRA.")
        else:
            saved[name] = tensor.float() if tensor.itemsize == 1 and tensor.is_floating_point() else tensor
    if odd := [path for path, pair in found.items() if len(pair) < 2]:
        raise WeightsError(f"The checkpoint holds one factor of {odd[0]} alone. Save the adapter again.")
    if not found:
        raise WeightsError("The checkpoint holds no LoRA factors. Save the adapter again.")
    for path, pair in found.items():
        down, up = pair["A"].shape, pair["B"].shape
        if len(down) not in (2, 4) or len(up) not in (2, 4) or up[2:].numel() != 1:
            raise WeightsError(
                f"The factors of {path} have the shapes {tuple(down)} and {tuple(up)}, and no product. Save it again."
            )
    return {path: (pair["A"], pair["B"]) for path, pair in found.items()}, saved


def scaling(config: Mapping[str, Any], path: str, rank: int) -> float:
    """What PEFT multiplies the product of a layer's factors by: α/R, or α/√R where it is rank-stabilised."""
    try:
        alphas = (config.get("alpha_pattern") or {}).items()
        fitting = (alpha for pattern, alpha in alphas if re.match(rf"(.*\.)?({_plain(pattern)})$", path))
        alpha = float(next(fitting, config.get("lora_alpha", 8)))
    except (AttributeError, TypeError, ValueError, OverflowError, re.error) as error:
        raise WeightsError(f"{CONFIG} has a damaged lora_alpha or alpha_pattern: {error}.") from error
    if not math.isfinite(alpha):
        raise WeightsError(f"{CONFIG} has a damaged lora_alpha: {alpha}.")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _plain(pattern: str) -> str:
    """A pattern of layers' names, where it is one that no name keeps busy for long; else raises ValueError."""
    if re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+?{]", pattern)) > 3:
        raise ValueError(f"{pattern[:60]!r} repeats more than a pattern of names needs")
    return pattern
