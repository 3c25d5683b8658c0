"""Random operations on models of every method: bits of frozen weights and of untouched tasks that change.

    python -m benchmarks.reliability.operations [--count 50000] [--method ftn] [--seed 0] [--json FILE]

Of each method so many: tasks added, removed, saved, loaded, served (one by one, mixed, stacked, in threads), trained a
step, fused, and a fused network made another task's. After each, every tensor of the backbone and of the tasks that it
was not about is compared with what it was, by a hash over its bits.
"""

from __future__ import annotations

import collections
import json
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import timm
import torch
from torch import Tensor, nn

import zoo
from benchmarks.record import save
from zoo.increments import methods
from zoo.models.multitask import MultiTaskModel
from zoo.storage.tensors import fingerprint

CLASSES = 3
FROZEN, NOTHING = "the frozen tensors", "nothing"  # beside tasks, what an operation may be about
ON_ATTENTION = ("kadaptation", "ftn_qv", "ftn_o", "lora")
RANKED = ("ftn", "tt", "svd", "tucker", *ON_ATTENTION)
MOST = 5  # tasks at a time


class Small(nn.Module):
    """Convolutions of several kinds between batch norms, which a pass in training mode would move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.point, self.fc = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        made = self.second(self.conv(self.first(self.stem(images)).relu())).relu()
        logits: Tensor = self.fc(self.point(made).mean((2, 3)))
        return logits


class Beaten:
    """A model, what its tensors were, and operations on it.

    Attributes:
        changed: what an operation changed and was not to, in words.
    """

    def __init__(self, method: str, seed: int, folder: Path) -> None:
        torch.manual_seed(seed)
        vit = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 4}
        network = timm.models.VisionTransformer(**vit) if method in ON_ATTENTION else Small()
        self.draw, self.folder = random.Random(f"{method} {seed}"), folder
        self.model = zoo.adapt(network, {"t0": CLASSES}, method, **({"rank": 2} if method in RANKED else {}))
        self.images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.fused: nn.Module | None = None
        self.saved: dict[str, str] = {}
        self.made, self.changed = 1, list[str]()
        self.known = self._bits()
        self.answers: dict[str, Tensor] = {}

    def step(self) -> str:
        """One operation, its name; what it should not have changed is compared."""
        name = self.draw.choice(list(OPERATIONS))
        touched = OPERATIONS[name](self)
        now = self._bits()
        for owner, bits in self.known.items():
            if owner != touched and now.get(owner) != bits:
                self.changed.append(f"{name}: {owner}")
        self.known = now
        return name

    def _bits(self) -> dict[str, str]:
        """A hash of each task's tensors, and of the frozen ones and those that tasks share."""
        model: MultiTaskModel = self.model
        found = {task: fingerprint(model.task_tensors(task)) for task in model.tasks}
        return found | {FROZEN: fingerprint({**model.backbone_tensors(), **model.shared_tensors()})}

    def some(self) -> str:
        return self.draw.choice(self.model.tasks)

    def add(self) -> str:
        if len(self.model.tasks) < MOST:
            self.made += 1
            self.model.add_task(zoo.Task.of(f"t{self.made}", CLASSES))
            return f"t{self.made}"
        return self.remove()

    def remove(self) -> str:
        task = self.some()
        if len(self.model.tasks) > 1:
            self.model.remove_task(task)
            self.answers.pop(task, None)
        return task

    def save(self) -> str:
        task = self.some()
        self.model.save_adapter(task, self.folder / f"{task}.safetensors")
        self.saved[task] = self.known[task]
        return NOTHING

    def load(self) -> str:
        free = [task for task in self.saved if task not in self.model.tasks]
        if not free or len(self.model.tasks) >= MOST:
            return NOTHING
        task = self.draw.choice(free)
        self.model.load_adapter(self.folder / f"{task}.safetensors")
        if fingerprint(self.model.task_tensors(task)) != self.saved[task]:
            self.changed.append(f"load: {task} is not what was saved")
        return task

    def serve(self) -> str:
        task = self.some()
        with torch.no_grad():
            logits = self.model(self.images, task=task)
        known = self.answers.setdefault(task, logits)
        if not torch.equal(known, logits):
            self.changed.append(f"serve: {task} answers otherwise")
        return NOTHING

    def mixed(self) -> str:
        with torch.no_grad():
            self.model(self.images, task=[self.some() for _ in self.images])
        return NOTHING

    def stacked(self) -> str:
        with torch.no_grad():
            self.model(self.images)
        return NOTHING

    def threads(self) -> str:
        tasks = [self.some() for _ in range(3)]
        found: dict[int, Tensor] = {}

        def ask(number: int) -> None:
            with torch.no_grad():
                found[number] = self.model(self.images, task=tasks[number])

        running = [threading.Thread(target=ask, args=(number,)) for number in range(len(tasks))]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        for number, task in enumerate(tasks):
            if not torch.equal(self.answers.setdefault(task, found[number]), found[number]):
                self.changed.append(f"threads: {task} answers otherwise")
        return NOTHING

    def train(self) -> str:
        task = self.some()
        self.model.train()
        self.model(self.images, task=task).square().sum().backward()
        with torch.no_grad():
            for _, parameter in self.model.task_parameters(task):
                if parameter.grad is not None:
                    parameter.sub_(1e-3 * parameter.grad)
                    parameter.grad = None
        self.model.eval()
        self.answers.pop(task, None)
        return task

    def fuse(self) -> str:
        self.fused = self.model.fuse(self.some())
        return NOTHING

    def swap(self) -> str:
        if self.fused is not None:
            zoo.swap(self.fused, self.model, self.some())
        return NOTHING


OPERATIONS: dict[str, Callable[[Beaten], str]] = {
    "add": Beaten.add, "remove": Beaten.remove, "save": Beaten.save, "load": Beaten.load, "serve": Beaten.serve,
    "mixed": Beaten.mixed, "stacked": Beaten.stacked, "threads": Beaten.threads, "train": Beaten.train,
    "fuse": Beaten.fuse, "swap": Beaten.swap,
}  # fmt: skip


def run(method: str, count: int, seed: int) -> dict[str, Any]:
    """So many random operations on a model of a method, and what they changed that they were not to."""
    done: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        beaten = Beaten(method, seed, Path(folder))
        for _ in range(count):
            done[beaten.step()] += 1
    told = {"changed": len(beaten.changed), "first": beaten.changed[:10]}
    return {"method": method, "count": count, "seed": seed, **told, **done}


def all_methods() -> list[str]:
    """Those that adapt a frozen network."""
    return [name for name, method in methods().items() if not method.trains_backbone]


@click.command()
@click.option("--method", "chosen", multiple=True)
@click.option("--count", default=50_000, show_default=True, help="Operations on each method's model.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(chosen: tuple[str, ...], count: int, seed: int, json_file: Path | None) -> None:
    torch.set_num_threads(1)
    rows = []
    for method in chosen or all_methods():
        rows.append(run(method, count, seed))
        click.echo(json.dumps(rows[-1]))
        save(json_file, rows)


if __name__ == "__main__":
    main()
