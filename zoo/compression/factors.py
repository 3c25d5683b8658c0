"""Trained models as the beginnings of smaller ones: parallel adapters factorised, networks factorised jointly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from zoo.catalog.entry import Entry
from zoo.catalog.handover import put_in
from zoo.catalog.recipe import recipe_names
from zoo.catalog.registry import Registry
from zoo.catalog.store import SHARED, adapter_files
from zoo.compression.fine_tuned import add_fine_tuned, fitting
from zoo.compression.forms import FORMS
from zoo.errors import OptionError
from zoo.increments.residual import Basis
from zoo.joint import JointModel
from zoo.loader import counted_parameters, fresh_model, load_adapters
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedLayer
from zoo.models.multitask import MultiTaskModel
from zoo.storage.tensors import write


def joint_factors(alphas: list[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """`[α_1 … α_T] ≈ U Σ V` cut to `rank`: β = U Σ (C_out, K), and γ_t = V_tᵀ (C_in, K) of each α_t (C_out, C_in).

    The best approximation of that rank in the Frobenius norm; its squared error is the sum of the squares of the
    singular values left out. Computed in double precision.
    """
    left, values, right = torch.linalg.svd(torch.cat(alphas, dim=1).double(), full_matrices=False)
    kept = min(rank, len(values))
    beta = torch.zeros(len(left), rank, dtype=torch.float64)
    beta[:, :kept] = left[:, :kept] * values[:kept]
    gammas = torch.zeros(right.shape[1], rank, dtype=torch.float64)
    gammas[:, :kept] = right[:kept].T
    return beta.float(), list(torch.split(gammas.float(), [alpha.shape[1] for alpha in alphas]))


def compress(source: MultiTaskModel, target: MultiTaskModel) -> dict[str, float]:
    """Fill a model without tasks with the tasks of a `parallel` one on the same backbone, their adapters factorised
    (residual adapters, Section 3.4).

    A `parallel_svd` target gets one β per layer for all tasks (Eq. 1); a `parallel` one with a rank, a β for each task.
    Norms and heads are taken over as they are.

    Returns:
        The relative error ‖[α_1 … α_T] − [β γ_1ᵀ … β γ_Tᵀ]‖ / ‖[α_1 … α_T]‖ of each adapted layer.

    Raises:
        OptionError: the models are not of those methods, adapt other layers, or the target has tasks already.
    """
    source, target = _checked(source, target)
    alphas = _adapters(source)
    if alphas.keys() != (layers := set(_adapted(target))):
        odd = ", ".join(sorted(alphas.keys() ^ layers))
        raise OptionError(f"The two models adapt different layers: {odd}. Give both the same placement.")
    errors, factors = {}, {}
    for path, each in alphas.items():
        factors[path], products = _factors(target, path, each)
        whole = torch.cat(each, 1)
        errors[path] = float((whole - torch.cat(products, 1)).norm() / whole.norm().clamp(min=1e-12))
    for number, name in enumerate(source.tasks):
        target.add_task(source.task(name))
        tensors = source.task_tensors(name)
        own = {key: tensors[key] for key in target.task_tensors(name) if key in tensors}
        found = {f"{path}.{key}": value for path, parts in factors.items() for key, value in parts[number].items()}
        target.load_task_tensors(name, {**own, **found})
    return errors


def _checked(source: MultiTaskModel, target: MultiTaskModel) -> tuple[TaskModel, TaskModel]:
    """Both models; raises OptionError unless one has parallel adapters, and the other a form of them to be filled."""
    if isinstance(source, TaskModel) and isinstance(target, TaskModel) and not target.tasks:
        low_rank = target.method.name == "parallel" and target.options.get("rank")
        if source.method.name == "parallel" and (target.method.name == "parallel_svd" or low_rank):
            return source, target
    raise OptionError("compress takes a parallel model, and a parallel_svd or low-rank parallel one without tasks.")


def _factors(target: TaskModel, path: str, alphas: list[Tensor]) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """What each task gets of one layer's α_t, by the increment's names, and the product that it stands for.

    Where the target's tasks share a basis, it is put into the layer.
    """
    if target.method.name == "parallel_svd":
        basis = target.backbone.get_submodule(f"{path}.shared")
        assert isinstance(basis, Basis)
        beta, gammas = joint_factors(alphas, basis.beta.shape[1])
        basis.beta.data.copy_(beta)
        return [{"gamma": gamma} for gamma in gammas], [beta @ gamma.T for gamma in gammas]
    pairs = [joint_factors([alpha], int(target.options["rank"])) for alpha in alphas]
    own = [{"beta": beta, "gamma": gammas[0]} for beta, gammas in pairs]
    return own, [beta @ gammas[0].T for beta, gammas in pairs]


def begin_jointly(source: MultiTaskModel, target: JointModel) -> dict[str, float]:
    """Give a joint model without tasks the tasks of another one, and start it from their fused networks.

    Returns:
        The relative error of each layer that is approximated.

    Raises:
        OptionError: the target's way of sharing starts from fresh weights only.
    """
    for task in source.tasks:
        target.add_task(source.task(task))
    return target.begin({task: source.fuse(task) for task in source.tasks})


def compress_entry(
    entry: Entry, registry: Registry, folder: Path, weights: str = "auto", backbone_file: Path | None = None
) -> dict[str, float]:
    """Bring the adapters, or the networks, of the entry's source to the entry's form, not trained any further.

    Writes `<folder>/shared.safetensors` and a `<task>.safetensors` for each task that both entries have.

    Args:
        weights: of the source, as `zoo.load` takes them.
        backbone_file: the backbone's weights, in place of the published ones.

    Returns:
        The relative error of each adapted layer.
    """
    known = registry.entry(entry.source)
    tasks = [task for task in known.tasks if task in entry.tasks]
    source = load_adapters(known, registry, adapter_files(known, tasks, weights), backbone_file)
    target = fresh_model(entry, registry, backbone_file=backbone_file)
    if entry.form:
        errors = _factorised(source, target, entry)
    else:
        errors = begin_jointly(source, target) if isinstance(target, JointModel) else compress(source, target)
    provenance = {"entry": entry.name, "backbone": entry.backbone, "source": entry.source}
    if target.shared_tensors():
        write(folder / SHARED, target.shared_tensors(), provenance)
    for task in target.tasks:
        target.save_adapter(task, folder / f"{task}.safetensors", provenance)
    return errors


def _factorised(source: MultiTaskModel, target: MultiTaskModel, entry: Entry) -> dict[str, float]:
    """Give a model without tasks those of fine-tuned networks, factorised; the relative error of each layer."""
    if not isinstance(target, TaskModel) or FORMS.get(entry.form) != target.method_name:
        known = ", ".join(f"{form} by the method {method}" for form, method in FORMS.items())
        raise OptionError(f"{entry.name} is of the form {entry.form!r} and the method {entry.method['name']}: {known}.")
    errors: dict[str, float] = {}
    for task in source.tasks:
        known_as = source.task(task)
        ranks = entry.method_of(task)["rank"]
        classes = list(known_as.classes)
        given = fitting(target, source.fuse(task))
        made = add_fine_tuned(target, given, ranks, task, classes, known_as.preprocessing, known_as.kind)
        errors |= {f"{task}/{layer.path}": layer.error for layer in made.layers}
    return errors


def compressed_entry(
    entry: Entry, registry: Registry, out: Path, rank: int | None = None, apart: bool = False, name: str = ""
) -> tuple[Entry, dict[str, float]]:
    """A new entry of compressed adapters in `out`, listed in `out/registry.yaml`, and the error of each layer.

    Training it begins with the compressed adapters (its `source` says of which entry).

    Raises:
        OptionError: the entry is not of parallel adapters, or its name is taken.
    """
    if entry.method["name"] != "parallel" or "rank" in entry.method:
        raise OptionError(f"{entry.name} has no parallel adapters to compress; its method is {entry.method}.")
    if apart and rank is None:
        raise OptionError("A basis for each task by itself needs a rank.")
    word = "parallel" if apart else "parallel_svd"
    suffix = "" if rank is None else f"_r{rank}"
    name = name or entry.name.replace("parallel", f"{word}{suffix}", 1)
    registry.check_new(name)
    kept = {key: value for key, value in entry.method.items() if apart or key != "dropout"}
    method = {**kept, "name": word} | ({} if rank is None else {"rank": rank})
    recipe = f"{entry.benchmark}/{word}"
    made = replace(
        entry.at(out), name=name, method=method, source=entry.name,
        weights=None, measured=None, reported=None, parameters=None,
    )  # fmt: skip
    if recipe in recipe_names():
        made = replace(made, recipe=recipe)
    errors = compress_entry(made, registry, out / name)
    files = {task: out / name / f"{task}.safetensors" for task in made.tasks}
    return put_in(out, replace(made, parameters=counted_parameters(made, registry)), files), errors


def _adapted(model: TaskModel) -> list[str]:
    """The paths of the layers that get adapters."""
    return [path for path, module in model.backbone.named_modules() if isinstance(module, AdaptedLayer)]


def _adapters(model: TaskModel) -> dict[str, list[Tensor]]:
    """The tasks' α of each adapted layer, by its path."""
    sites = {path: model.backbone.get_submodule(path).get_submodule("tasks") for path in _adapted(model)}
    return {
        path: [tasks.get_submodule(name).matrix().detach().cpu() for name in model.tasks]  # type: ignore[operator]
        for path, tasks in sites.items()
    }
