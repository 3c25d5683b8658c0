"""LoRA checkpoints of Hugging Face PEFT, to and from.

PEFT writes a folder: adapter_config.json, and adapter_model.safetensors with the factors of each layer and the modules
that were trained whole.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import resources
from zoo.errors import OptionError, WeightsError
from zoo.files import atomic_path
from zoo.increments import Increment
from zoo.layers import AdaptedLayer, TaskNorm
from zoo.loader import pretrained_network
from zoo.model import TaskModel
from zoo.placement import NORMS, Placement
from zoo.publishing import with_files
from zoo.registry import Entry, Registry, default_registry
from zoo.task import Preprocessing, Task
from zoo.tensors import read, write

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNKNOWN = {  # settings of PEFT's that change what a checkpoint computes, and that have no counterpart here
    "use_dora": False, "fan_in_fan_out": False, "lora_bias": False, "bias": "none", "layer_replication": None,
    "target_parameters": None, "trainable_token_indices": None, "use_qalora": False, "arrow_config": None,
    "alora_invocation_tokens": None, "use_bdlora": None, "kasa_config": None,
}  # fmt: skip


def load_peft(
    folder: str | Path, backbone: str | nn.Module, *, task: str = "task", registry: Registry | None = None
) -> TaskModel:
    """A LoRA adapter that PEFT saved, as a model of the method `lora` with one task; the logits are PEFT's.

    A norm or the classifier is the checkpoint's where PEFT trained it (`modules_to_save`), else the backbone's.

    Args:
        folder: of adapter_config.json and adapter_model.safetensors.
        backbone: a name such as `timm/vit_base_patch32_clip_224.openai`, with its pre-trained weights, or a module.

    Raises:
        WeightsError: the checkpoint is damaged, or not of this backbone.
        OptionError: the checkpoint does something that `lora` cannot; nothing is converted in part.
    """
    registry = registry or default_registry()
    config, (tensors, header) = _read_config(Path(folder)), read(Path(folder) / WEIGHTS)
    pairs, saved = _sorted(tensors)
    whole = {name.rpartition(".")[0] for name in saved}
    network = backbone if isinstance(backbone, nn.Module) else pretrained_network(backbone, registry, whole)
    model = _model_like(network, pairs, saved)
    head = model.head_paths[0]
    classifier = {k: saved.get(f"{head}.{k}", v) for k, v in network.get_submodule(head).state_dict().items()}
    known = header.get("task", {})
    classes = known.get("classes") or [str(i) for i in range(len(classifier["weight"]))]
    preprocessing = Preprocessing.from_data(known["preprocessing"]) if known else _preprocessing(network)
    model.add_task(Task(task, tuple(classes), preprocessing))
    own = {name: saved.get(name, tensor) for name, tensor in model.task_tensors(task).items()}
    own |= {f"{head}.{key}": tensor for key, tensor in classifier.items()}
    rank = model.options["rank"]
    for path, (down, up) in pairs.items():
        short = rank - len(down)
        own[f"{path}.parts.whole.a"] = torch.cat([down.flatten(1), torch.zeros(short, down[0].numel())])
        own[f"{path}.parts.whole.b"] = torch.cat(
            [_scaling(config, path, len(down)) * up.flatten(1), torch.zeros(len(up), short)], 1
        )
    model.load_task_tensors(task, own, str(folder))
    return model


def save_peft(model: TaskModel, task: str, folder: str | Path, base_model: str = "") -> None:
    """Write a task as a LoRA checkpoint of PEFT's, which computes the same; what would not be exact is refused.

    ΔW has to be a product of thin matrices: `lora` (rank R for each projection that it adapts, so 2R on a packed query,
    key and value layer), `ftn_qv` (the same), `ftn_o` (R), and `ftn` (R) on layers that are not grouped. Ranks that
    differ are filled up with zeros. The classifier and the task's norms are saved whole.

    Args:
        folder: a new one, or one without a checkpoint.
        base_model: what PEFT is told that the backbone is, such as `timm/vit_base_patch32_clip_224.openai`.

    Raises:
        OptionError: the method or a layer has no exact LoRA form, or the folder holds a checkpoint.
    """
    known, folder = model.task(task), Path(folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise OptionError(f"{folder} holds a checkpoint already; name another folder.")
    norms = [path for path, site in model.sites(task) if isinstance(site, TaskNorm)]
    pairs = {path: _exact(path, site, task) for path, site in model.sites(task) if isinstance(site, AdaptedLayer)}
    if not pairs:
        raise OptionError(f"The method {model.method.name!r} adapts no layer, so there is nothing for LoRA to hold.")
    rank = max(down.shape[0] for _, down in pairs.values())
    tensors = {}
    for path, (up, down) in pairs.items():
        weight = model.backbone.get_submodule(path).get_parameter("weight")
        filled = torch.cat([down, down.new_zeros(rank - len(down), down.shape[1])])
        tensors[f"{path}.lora_A.weight"] = filled.view(rank, *weight.shape[1:])
        widened = torch.cat([up, up.new_zeros(len(up), rank - up.shape[1])], 1)
        tensors[f"{path}.lora_B.weight"] = widened.view(*widened.shape, *[1] * (weight.ndim - 2))
    whole = [*model.head_paths, *norms]
    tensors |= {n: t for n, t in model.task_tensors(task).items() if n.startswith(tuple(f"{path}." for path in whole))}
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(pairs), "modules_to_save": whole,
    }  # fmt: skip
    header = {"task": {"classes": list(known.classes), "preprocessing": vars(known.preprocessing)}}
    write(folder / WEIGHTS, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, header)
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def converted_entry(folder: Path, backbone: str, registry: Registry, out: Path, name: str, task: str) -> Entry:
    """A PEFT checkpoint as an entry of its own in `out`, listed in `out/registry.yaml`.

    Raises:
        OptionError: the name is taken, or leaves `out`.
    """
    if name in registry.names():
        raise OptionError(f"The zoo has an entry {name!r} already; choose another name with --name.")
    file = resources.within(out, f"{name}/{task}.safetensors")
    model = load_peft(folder, backbone, task=task, registry=registry)
    norms = [path for path, site in model.sites(task) if isinstance(site, TaskNorm)]
    layers = [path for path, site in model.sites(task) if isinstance(site, AdaptedLayer)]
    method = {"name": "lora", **model.options, "layers": layers} | ({"norms": norms} if norms else {})
    model.save_adapter(task, file, {"entry": name, "backbone": backbone})
    entry = Entry(
        backbone, method, "folder", {task: len(model.task(task).classes)}, "folder/lora", name=name, folder=out,
        parameters=model.count_parameters(task),
    )  # fmt: skip
    entry = with_files(entry, {task: file}, f"file:{name}/")
    own = Registry.read(out / "registry.yaml") if (out / "registry.yaml").exists() else Registry()
    own.update(entry)
    own.write(out / "registry.yaml")
    return entry


def _read_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings, of which none is beyond `lora`."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"There is no {folder / CONFIG}; a PEFT checkpoint is a folder with one.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG} does not read ({error}). Save the adapter again.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise OptionError(f"{folder / CONFIG} is no LoRA checkpoint: its peft_type is {config.get('peft_type')!r}.")
    odd = [f"{key}={config[key]!r}" for key, plain in UNKNOWN.items() if (config.get(key) or plain) != plain]
    if odd:
        raise OptionError(f"{folder} was trained with {', '.join(odd)}, which has no counterpart in the zoo's LoRA.")
    return config


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The factors (A, B) by layer, and the tensors of modules that were trained whole."""
    found: dict[str, dict[str, Tensor]] = {}
    saved = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            found.setdefault(match[1], {})[match[2]] = tensor.float()
        elif "lora_" in name:
            raise OptionError(f"The checkpoint holds {key}, which has no counterpart in the zoo's LoRA.")
        else:
            saved[name] = tensor
    if odd := [path for path, pair in found.items() if len(pair) < 2]:
        raise WeightsError(f"The checkpoint holds one factor of {odd[0]} alone. Save the adapter again.")
    if not found:
        raise WeightsError("The checkpoint holds no LoRA factors. Save the adapter again.")
    return {path: (pair["A"], pair["B"]) for path, pair in found.items()}, saved


def _model_like(
    network: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], saved: Mapping[str, Tensor]
) -> TaskModel:
    """A copy of the network, with the checkpoint's layers adapted, and its norms the task's."""
    modules = dict(network.named_modules())
    for path, (down, up) in pairs.items():
        weight = getattr(modules.get(path), "weight", None)
        if not isinstance(weight, Tensor):
            raise WeightsError(f"The backbone has no layer {path}, which the checkpoint adapts.")
        if (len(up), down[0].numel()) != (len(weight), weight[0].numel()):
            raise WeightsError(
                f"The checkpoint adapts {path} by {len(up)} × {down[0].numel()}; "
                f"the backbone's layer is {len(weight)} × {weight[0].numel()}."
            )
    whole = {name.rpartition(".")[0] for name in saved}
    norms = [path for path in whole if isinstance(modules.get(path), NORMS)]
    rank = max(len(down) for down, _ in pairs.values())
    model = TaskModel(copy.deepcopy(network), "lora", {"rank": rank}, Placement(list(pairs), norms))
    if odd := sorted(whole - {*norms, *model.head_paths}):
        raise OptionError(f"The checkpoint trained {odd[0]} whole, which is neither a norm nor the classifier.")
    if len(model.head_paths) > 1:
        raise OptionError(f"The backbone has several classifiers, {', '.join(model.head_paths)}; one is converted.")
    return model


def _preprocessing(network: nn.Module) -> Preprocessing:
    """What timm says of the network's input, else ImageNet's."""
    config = getattr(network, "pretrained_cfg", None) or {}
    if not {"input_size", "mean", "std"} <= set(config):
        return Preprocessing()
    size = int(config["input_size"][-1])
    resize = round(size / float(config.get("crop_pct") or 1))
    return Preprocessing(size, resize, tuple(config["mean"]), tuple(config["std"]))


def _scaling(config: Mapping[str, Any], path: str, rank: int) -> float:
    """What PEFT multiplies the product of a layer's factors by: α/R, or α/√R where it is rank-stabilised."""
    alphas = config.get("alpha_pattern") or {}
    fitting = (alpha for pattern, alpha in alphas.items() if re.match(rf"(.*\.)?({pattern})$", path))
    alpha = float(next(fitting, config.get("lora_alpha", 8)))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _exact(path: str, site: AdaptedLayer, task: str) -> tuple[Tensor, Tensor]:
    """ΔW of a layer as (up, down); raises OptionError if it has no such form."""
    increment = site.tasks[task]
    assert isinstance(increment, Increment)
    with torch.no_grad():
        found = increment.low_rank(site.weight)
    if found is None:
        raise OptionError(f"{path}: the increment of this method is no product of two thin matrices.")
    if getattr(site, "groups", 1) > 1:
        raise OptionError(f"{path} is a grouped convolution, where LoRA's factors would be grouped too.")
    return found
