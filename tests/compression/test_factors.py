"""Parallel adapters as low-rank ones, for all tasks jointly or for each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from tests.conftest import SmallNet, disturb
from zoo.catalog.task import Task
from zoo.compression.factors import compress, joint_factors
from zoo.errors import OptionError, WeightsError
from zoo.models.adapted import TaskModel
from zoo.models.placement import Placement


def trained(tasks: int = 3) -> TaskModel:
    """A parallel model whose adapters are away from their start."""
    torch.manual_seed(3)
    model = zoo.adapt(SmallNet(), {f"t{i}": 3 + i for i in range(tasks)}, "parallel")
    for task in model.tasks:
        disturb(model, task)
    return model


def compressed(source: TaskModel, rank: int | None = None) -> tuple[TaskModel, dict[str, float]]:
    target = TaskModel(SmallNet(), "parallel_svd", {} if rank is None else {"rank": rank})
    target.load_backbone_tensors(source.backbone_tensors())
    return target, compress(source, target)


def test_at_full_rank_the_adapters_are_reproduced() -> None:
    source = trained()
    target, errors = compressed(source, 12)
    assert max(errors.values()) < 1e-5
    x = torch.randn(4, 3, 16, 16)
    for task in source.tasks:
        torch.testing.assert_close(target(x, task=task), source(x, task=task), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(target.fuse(task)(x), target(x, task=task), rtol=1e-5, atol=1e-5)


def test_the_error_is_that_of_the_singular_values_left_out() -> None:
    alphas = [torch.randn(10, 7) for _ in range(3)]
    values = torch.linalg.svdvals(torch.cat(alphas, 1))
    for rank in (1, 4, 9):
        beta, gammas = joint_factors(alphas, rank)
        error = torch.cat([alpha - beta @ gamma.T for alpha, gamma in zip(alphas, gammas, strict=True)], 1).norm()
        torch.testing.assert_close(error, values[rank:].norm(), rtol=1e-4, atol=1e-5)
        assert (beta.shape, gammas[0].shape) == ((10, rank), (7, rank))


def test_each_task_by_itself_has_a_basis_of_its_own() -> None:
    source = trained()
    for rank, limit in ((12, 1e-5), (2, 1.0)):
        target = TaskModel(SmallNet(), "parallel", {"rank": rank})
        target.load_backbone_tensors(source.backbone_tensors())
        errors = compress(source, target)
        assert max(errors.values()) < limit
        alpha = source.get_submodule("backbone.body.0").tasks["t1"].matrix()  # type: ignore[index]
        kept = target.get_submodule("backbone.body.0").tasks["t1"].matrix()  # type: ignore[index]
        torch.testing.assert_close(
            (alpha - kept).norm(), torch.linalg.svdvals(alpha)[rank:].norm(), rtol=1e-3, atol=1e-4
        )


def test_joint_compression_has_the_papers_share_of_parameters() -> None:
    """(TCK + CK) / (TC²), which tends to K / C."""
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 9, 1))
    tasks = {f"t{i}": 3 for i in range(9)}
    plain, shared = zoo.adapt(network, tasks, "parallel"), zoo.adapt(network, tasks, "parallel_svd")
    before, after = plain.count_parameters("t0"), shared.count_parameters("t0")
    c, k, t = 64, 32, 9
    assert before.per_task == c * c
    assert (after.per_task, after.shared) == (c * k, c * k)
    assert (t * after.per_task + after.shared) / (t * before.per_task) == (t * c * k + c * k) / (t * c * c)


def test_the_basis_is_stored_once_and_is_no_part_of_task_or_backbone() -> None:
    target, _ = compressed(trained())
    shared = target.shared_tensors()
    assert set(shared) == {"body.0.shared.beta", "body.3.shared.beta"}
    assert not set(shared) & {*target.task_tensors("t0"), *target.backbone_tensors()}
    assert not any(p.requires_grad for name, p in target.named_parameters() if ".shared." in name)
    assert "beta" not in {name.rpartition(".")[2] for name, _ in target.task_parameters("t0")}


def test_adapter_files_belong_to_their_basis(tmp_path: Path) -> None:
    target, _ = compressed(trained())
    target.save_adapter("t1", tmp_path / "t1.safetensors")
    other = TaskModel(SmallNet(), "parallel_svd")
    other.load_backbone_tensors(target.backbone_tensors())
    with pytest.raises(WeightsError, match="belongs to other shared tensors"):
        other.load_adapter(tmp_path / "t1.safetensors")
    other.load_shared_tensors(target.shared_tensors())
    other.load_adapter(tmp_path / "t1.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(other(x, task="t1"), target(x, task="t1"))


def test_a_further_domain_starts_as_the_backbone_and_learns_on_the_frozen_basis() -> None:
    target, _ = compressed(trained())
    before = {key: value.clone() for key, value in target.shared_tensors().items()}
    target.add_task(Task.of("further", 4))
    x = torch.randn(4, 3, 16, 16)
    plain = zoo.adapt(SmallNet(), {}, "bn")
    plain.load_backbone_tensors(target.backbone_tensors())
    plain.add_task(Task.of("further", 4))
    head = {k: v for k, v in target.task_tensors("further").items() if k.startswith("classifier")}
    plain.load_task_tensors("further", {**plain.task_tensors("further"), **head})
    assert torch.equal(target(x, task="further"), plain(x, task="further"))
    target(x, task="further").sum().backward()
    assert target.get_submodule("backbone.body.0").tasks["further"].gamma.grad.abs().sum() > 0  # type: ignore[index]
    assert all(torch.equal(before[key], value) for key, value in target.shared_tensors().items())


def test_what_cannot_be_compressed_is_refused() -> None:
    source = trained()
    with pytest.raises(OptionError, match="takes a parallel model"):
        compress(zoo.adapt(SmallNet(), {"t": 3}, "series"), TaskModel(SmallNet(), "parallel_svd"))
    with pytest.raises(OptionError, match=r"adapt different layers: body\.0"):
        compress(source, TaskModel(SmallNet(), "parallel_svd", {}, Placement(layers=["body.3"])))
    with pytest.raises(OptionError, match=r"^body\.0: The rank must be at least 1, not 0"):
        TaskModel(SmallNet(), "parallel_svd", {"rank": 0})


def test_a_layer_keeps_no_more_of_the_basis_than_it_has_channels() -> None:
    target, errors = compressed(trained(), 99)
    assert max(errors.values()) < 1e-5
    assert target.shared_tensors()["body.0.shared.beta"].shape == (12, 12)
