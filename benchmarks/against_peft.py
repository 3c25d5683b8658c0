"""FTN and PEFT's LoRA on the same work: one network, the same images in the same order, steps, head and optimisers.

    python benchmarks/against_peft.py --data-root DATA [--task textures --task weather --task noto] [--json FILE]

Both train EfficientNet-Lite0 by the recipe of `efficientnet_lite0-ftn-r4-<benchmark>` (docs/pictures.md): a head that
begins as a linear probe, norms that keep the backbone's statistics, Adam for the factors and SGD for the rest. PEFT's
LoRA stands on the same convolutions as FTN, but for the depthwise ones, which it refuses where their groups do not
divide its rank; norms and head are its `modules_to_save`. Its rank is the one whose number of parameters comes nearest
to FTN's, and `lora_alpha` equals it. Its factors' learning rate was chosen as FTN's was, on images held out of training
(`--hold-out 0.2 --lora-rate …`). One thread each. A step of both is timed in turn, on a batch that is there.

Besides, what can be done afterwards: how far the frozen weights are from what they were once LoRA was merged into them
and taken out again, and what becomes of a batch with images of two tasks.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from peft import LoraConfig, get_peft_model
from record import save
from torch import Tensor, nn

import zoo
from zoo.catalog.recipe import Recipe, load_recipe
from zoo.catalog.registry import default_registry
from zoo.cli.tables import show
from zoo.datasets import Splits, Transformed, get_benchmark, held_out
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedLayer, TaskHead, TaskNorm
from zoo.training import loop
from zoo.training.batches import Turns, seed_of
from zoo.training.evaluation import measure
from zoo.training.optimizers import set_learning_rates, update
from zoo.training.probe import fit_head
from zoo.verification.timing import interleaved, medians, ratio

RANKS = range(1, 9)
LORA_RATE = 0.01


class Work:
    """One task: its images, its recipe, and FTN with a probed head and no training yet."""

    def __init__(self, task: str, data_root: Path, lora_rate: float, hold_out: float) -> None:
        benchmark = next(name for name in ("pictures", "emoji") if task in get_benchmark(name).tasks(None))
        entry = default_registry().entry(f"efficientnet_lite0-ftn-r4-{benchmark}")
        self.name, self.lora_rate = task, lora_rate
        self.data: Splits = get_benchmark(benchmark).splits(task, data_root / benchmark)
        if hold_out:
            self.data = held_out(self.data, hold_out, seed=0)
        self.recipe: Recipe = load_recipe(entry.recipe).of(task)
        self.accelerator = loop.make_accelerator("no", cpu=True)
        torch.manual_seed(seed_of(self.recipe.seed, task, "init"))
        self.model: TaskModel = zoo.load(entry.name, task=task, weights="backbone")  # type: ignore[assignment]
        fit_head(self.model, task, self.data.train, self.accelerator)
        self.plain = self.model.fuse(task)  # equals the backbone with the probed head: FTN starts at zero

    def accuracy(self, network: Any) -> float:
        return measure(network, self.data.test, self.model.task(self.name))

    def parameters(self) -> int:
        """How many FTN trains."""
        return sum(p.numel() for _, p in self.model.task_parameters(self.name))


def ours(work: Work, store: Path) -> dict[str, Any]:
    """FTN, trained by the zoo."""
    model, recipe = work.model, replace(work.recipe, head="fresh")  # it is probed already
    loop.train_tasks(model, {work.name: work.data}, recipe, accelerator=work.accelerator)
    frozen = clones(model.backbone)
    accuracy, parameters = work.accuracy(model.answering(work.name)), work.parameters()
    file = store / "ours.safetensors"
    model.save_adapter(work.name, file)
    model.fuse(work.name)
    moved = drift(model.backbone, frozen)
    model.add_task(replace(model.task(work.name), name="another"))
    x = images(work)
    with torch.no_grad():
        model(x)  # the first is made task by task, and compared
        alone, together = {name: model(x, task=name) for name in model.tasks}, model(x)
    apart = max((alone[name] - together[name]).abs().max().item() for name in alone)
    mixed = (
        f"no task for each row either; all tasks' answers for all rows in one pass, within {apart:.0e} of each alone"
    )
    return row(work, "FTN R=4", parameters, file.stat().st_size, accuracy, moved, mixed)


def theirs(work: Work, store: Path) -> dict[str, Any]:
    """LoRA, trained by a plain loop as PEFT's documentation shows, with the zoo's batches."""
    rank = nearest_rank(work)
    network = with_lora(work, rank)
    assert work.recipe.increments is not None
    recipe = replace(work.recipe, increments=replace(work.recipe.increments, lr=work.lora_rate))
    factors = [p for name, p in network.named_parameters() if p.requires_grad and ".lora_" in name]
    rest = [p for name, p in network.named_parameters() if p.requires_grad and ".lora_" not in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(factors, work.lora_rate),
        torch.optim.SGD(rest, recipe.rest.lr, momentum=recipe.rest.momentum),
    ]
    feed = Turns({work.name: work.data}, {work.name: recipe}, work.accelerator, 0)
    for epoch in range(recipe.epochs):
        torch.manual_seed(seed_of(recipe.seed, work.name, epoch, 0))  # as the zoo's loop does: the same crops
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and recipe.statistics == "frozen":
                module.eval()
        for number, (_, inputs, targets) in enumerate(feed.epoch(epoch), epoch * len(feed)):
            set_learning_rates(optimizers, recipe, number / (recipe.epochs * len(feed)))
            outputs = network(inputs.to(memory_format=torch.channels_last))
            nn.functional.cross_entropy(outputs, targets).backward()
            update(optimizers)
    accuracy = work.accuracy(network.eval())
    network.save_pretrained(store / "theirs")
    size, frozen = (store / "theirs" / "adapter_model.safetensors").stat().st_size, clones(network)
    network.merge_adapter()
    network.unmerge_adapter()
    moved = drift(network, frozen)
    network.add_adapter("another", network.peft_config["default"])
    x = images(work)
    try:
        network(x, adapter_names=["default", "another"])
        mixed = "works"
    except Exception as error:
        mixed = f"{type(error).__name__}: {error}"
    return row(work, f"PEFT LoRA R={rank}", trained(network), size, accuracy, moved, mixed)


def steps(work: Work, rounds: int) -> dict[str, float]:
    """Milliseconds of a training step of both on a batch that is there, in turn."""
    inputs = torch.randn(work.recipe.batch, *work.recipe.input.input_size).to(memory_format=torch.channels_last)
    labels = torch.arange(len(inputs)) % len(work.data.classes)
    work.model.train().to(memory_format=torch.channels_last)
    work.model.rest_norms(work.name)
    lora = with_lora(work, nearest_rank(work)).train()
    for module in lora.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()

    def step(forward: Any, parameters: list[nn.Parameter]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(parameters, 1e-5)

        def run() -> None:
            nn.functional.cross_entropy(forward(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    own = [p for _, p in work.model.task_parameters(work.name)]
    calls = {
        "FTN": step(lambda x: work.model(x, task=work.name), own),
        "PEFT LoRA": step(lora, [p for p in lora.parameters() if p.requires_grad]),
    }
    seconds = interleaved(calls, rounds)
    return {**{name: 1000 * s for name, s in medians(seconds).items()}, "ratio": ratio(seconds, "FTN", "PEFT LoRA")}


def nearest_rank(work: Work) -> int:
    """LoRA's rank whose number of parameters comes nearest to FTN's."""
    return min(RANKS, key=lambda rank: abs(trained(with_lora(work, rank)) - work.parameters()))


def with_lora(work: Work, rank: int) -> Any:
    """The plain network with LoRA and PEFT's copies of norms and head."""
    sites = list(work.model.sites(work.name))
    convolutions = [name for name, site in sites if isinstance(site, AdaptedLayer) and site.groups == 1]
    copied = [name for name, site in sites if isinstance(site, TaskNorm | TaskHead)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=convolutions, modules_to_save=copied)
    plain = copy.deepcopy(work.plain).requires_grad_(False)
    return get_peft_model(plain, config).to(memory_format=torch.channels_last)


def trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def clones(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def drift(network: nn.Module, before: dict[str, Tensor]) -> float:
    """The greatest change of any tensor since it was cloned."""
    now = network.state_dict()
    return max((now[name] - tensor).abs().max().item() for name, tensor in before.items() if tensor.is_floating_point())


def images(work: Work) -> Tensor:
    """Two test images, as the network takes them."""
    shown = Transformed(work.data.test, work.recipe.input.transform())
    return torch.stack([shown[k][0] for k in range(2)])


def place(made: dict[str, Any]) -> tuple[str, str]:
    return made["task"], made["method"]


def row(work: Work, method: str, *figures: object) -> dict[str, Any]:
    names = ("parameters", "bytes", "accuracy", "moved", "mixed")
    return {"task": work.name, "method": method, **dict(zip(names, figures, strict=True))}


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--task", "tasks", multiple=True, default=["textures", "weather", "noto"], show_default=True)
@click.option("--lora-rate", type=float, default=LORA_RATE, show_default=True)
@click.option("--hold-out", type=float, default=0.0, help="Test on a share of the training images.")
@click.option("--lora-alone", is_flag=True, help="Leave FTN out.")
@click.option("--rounds", default=9, show_default=True, help="Of the timing of a step; 0 leaves it out.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also keep the figures here.")
def main(
    data_root: Path, tasks: tuple[str, ...], lora_rate: float, hold_out: float, lora_alone: bool, rounds: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    found: dict[str, Any] = {"tasks": [], "step": {}}
    if json_file and json_file.exists():  # what is not measured now stays
        found |= json.loads(json_file.read_text())["rows"]
    if rounds:
        found["step"] = steps(Work(tasks[0], data_root, lora_rate, hold_out), rounds)
        show([found["step"]])
    for task in tasks:
        work = Work(task, data_root, lora_rate, hold_out)
        for train in (theirs,) if lora_alone else (theirs, ours):
            with tempfile.TemporaryDirectory() as store:
                made = train(work, Path(store))
            show([made])
            found["tasks"] = [each for each in found["tasks"] if (each["task"], each["method"]) != place(made)] + [made]
            save(json_file, found, peers=("peft",))


if __name__ == "__main__":
    main()
