"""One training step of FTN against full fine-tuning and against PEFT's LoRA of the same rank on the same layers.

    python benchmarks/training_step.py [--rounds 9] [--device cuda] [--channels-last] [--route folded]

Needs `pip install ftn-zoo[bench]`. Prints the median step time of each and the ratio to fine-tuning, round by round.
"""

from collections.abc import Callable
from pathlib import Path

import click
import timm
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

CASES = [  # backbone, rank, batch, input size
    ("torchvision/resnet18", 20, 16, 160), ("torchvision/resnet34", 40, 16, 160), ("torchvision/resnet50", 50, 16, 160),
    ("timm/tf_efficientnet_lite0", 8, 32, 96), ("timm/mobilenetv2_100", 8, 32, 96),
]  # fmt: skip
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


def with_classes(name: str) -> nn.Module:
    """A fresh network of the zoo's name with so many classes."""
    library, _, own = name.partition("/")
    if library == "timm":
        return timm.create_model(own, num_classes=CLASSES)
    network: nn.Module = getattr(torchvision.models, own)(num_classes=CLASSES)
    return network


def candidates(name: str, rank: int, images: torch.Tensor, route: str) -> dict[str, Callable[[], None]]:
    """The same architecture under each way of training."""
    build = lambda: with_classes(name)  # noqa: E731
    like = lambda m: m.to(images.device).to(memory_format=_format(images))  # noqa: E731
    plain = like(build())
    adapted = TaskModel(build(), "ftn", {"rank": rank, "route": route})
    adapted.add_task(Task.of("task", CLASSES))
    adapted = like(adapted)
    layers = Placement().find(build(), get_method("ftn"))
    # PEFT takes no depthwise layer whose channels do not divide the rank.
    taken = [path for path in layers.adapted if rank % getattr(plain.get_submodule(path), "groups", 1) == 0]
    config = LoraConfig(r=rank, target_modules=taken, modules_to_save=[*layers.heads, *layers.norms])
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
@click.option("--batch", type=int, help="In place of each case's.")
@click.option("--size", type=int, help="Height and width of the images, in pixels, in place of each case's.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--channels-last", is_flag=True)
@click.option("--route", default="auto", show_default=True)
@click.option("--case", "cases", multiple=True, type=click.Choice([c[0].partition("/")[2] for c in CASES]))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(
    rounds: int,
    batch: int | None,
    size: int | None,
    device: str,
    channels_last: bool,
    route: str,
    cases: tuple[str, ...],
    json_file: Path | None,
) -> None:
    rows = []
    for path, rank, own_batch, own_size in CASES:
        name, count, pixels = path.partition("/")[2], batch or own_batch, size or own_size
        if cases and name not in cases:
            continue
        torch.manual_seed(0)
        images = torch.randn(count, 3, pixels, pixels, device=device)
        images = images.to(memory_format=torch.channels_last) if channels_last else images
        seconds = interleaved(candidates(path, rank, images, route), rounds, warmup=2)
        ms = {key: 1000 * value for key, value in medians(seconds).items()}
        ratios = {key: ratio(seconds, key, "fine-tuning") for key in seconds}
        rows.append({"model": name, "rank": rank, "ms": ms, "ratio": ratios})
        text = "  ".join(f"{key} {ms[key]:.0f} ms ({ratios[key]:.2f})" for key in seconds)
        click.echo(f"{name} R={rank}, batch {count}, {pixels} px, {device}: {text}")
    save(json_file, rows, device)


if __name__ == "__main__":
    main()
