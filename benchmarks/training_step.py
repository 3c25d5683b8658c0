"""One training step of FTN against full fine-tuning and against PEFT's LoRA of the same rank on the same layers.

    python benchmarks/training_step.py [--rounds 9] [--device cuda] [--channels-last] [--route folded]

Needs `pip install ftn-zoo[bench]`. Prints the median step time of each and the ratio to fine-tuning, round by round.
"""

from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
import torchvision
from peft import LoraConfig, get_peft_model
from record import save
from torch import nn

from zoo.catalog.task import Task
from zoo.increments import get_method
from zoo.models.adapted import TaskModel
from zoo.models.placement import Placement
from zoo.verification.timing import interleaved, medians, ratio

CASES = [("resnet18", 20), ("resnet34", 40), ("resnet50", 50)]
CLASSES = 100


def step(forward: Callable[[torch.Tensor], torch.Tensor], model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """A full step: forward, backward, and SGD on whatever is trainable."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    labels = torch.randint(0, CLASSES, (len(images),), device=images.device)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return run


def candidates(name: str, rank: int, images: torch.Tensor, route: str) -> dict[str, Callable[[], None]]:
    """The same architecture under each way of training."""
    build = lambda: getattr(torchvision.models, name)(num_classes=CLASSES)  # noqa: E731
    like = lambda m: m.to(images.device).to(memory_format=_format(images))  # noqa: E731
    plain = like(build())
    adapted = TaskModel(build(), "ftn", {"rank": rank, "route": route})
    adapted.add_task(Task.of("task", CLASSES))
    adapted = like(adapted)
    layers = Placement().find(build(), get_method("ftn"))
    config = LoraConfig(r=rank, target_modules=list(layers.adapted), modules_to_save=[*layers.heads, *layers.norms])
    peft = like(get_peft_model(build(), config))
    return {
        "fine-tuning": step(plain, plain, images),
        "ftn": step(lambda x: adapted(x, task="task"), adapted, images),
        "peft-lora": step(peft, peft, images),
    }


def _format(images: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--size", default=160, show_default=True, help="Height and width of the images, in pixels.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--channels-last", is_flag=True)
@click.option("--route", default="auto", show_default=True)
@click.option("--case", "cases", multiple=True, type=click.Choice([c[0] for c in CASES]))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(
    rounds: int,
    batch: int,
    size: int,
    device: str,
    channels_last: bool,
    route: str,
    cases: tuple[str, ...],
    json_file: Path | None,
) -> None:
    rows = []
    for name, rank in CASES:
        if cases and name not in cases:
            continue
        torch.manual_seed(0)
        images = torch.randn(batch, 3, size, size, device=device)
        images = images.to(memory_format=torch.channels_last) if channels_last else images
        seconds = interleaved(candidates(name, rank, images, route), rounds, warmup=2)
        ms = {key: 1000 * value for key, value in medians(seconds).items()}
        ratios = {key: ratio(seconds, key, "fine-tuning") for key in seconds}
        rows.append({"model": name, "rank": rank, "ms": ms, "ratio": ratios})
        text = "  ".join(f"{key} {ms[key]:.0f} ms ({ratios[key]:.2f})" for key in seconds)
        click.echo(f"{name} R={rank}, batch {batch}, {size} px, {device}: {text}")
    save(json_file, rows, device)


if __name__ == "__main__":
    main()
