"""Pictures that tasks make: of latents that are drawn, of those between them, and of those that fit pictures best."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zoo.backbones import architecture
from zoo.backbones.generator import Generator
from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.task import GENERATION
from zoo.datasets import open_image
from zoo.errors import DataError, OptionError
from zoo.kinds.generation import psnr
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import atomic_path

Maker = Callable[[Tensor], Tensor]  # latents (B, Z) to pictures (B, 3, S, S)
MARGIN = 2  # pixels between the pictures of a sheet
TOGETHER = 64  # pictures in a pass
BACKBONE = "backbone"  # what the network without any task is called, in the names of files


def maker(model: MultiTaskModel, name: str = "") -> MultiTaskModel:
    """The model, if its tasks make pictures; raises OptionError if one does not."""
    if other := [task for task in model.tasks if model.task(task).kind != GENERATION]:
        raise OptionError(
            f"{other[0]}{f' of {name}' if name else ''} makes no pictures; `zoo predict` tells what it sees in one."
        )
    return model


def drawn(
    model: MultiTaskModel, entry: Entry, registry: Registry, task: str | None, count: int, seed: int
) -> tuple[Tensor, dict[str, Maker]]:
    """Latents (count, Z), and what makes pictures of them: a task, of latents from where its own lie; or without one
    the backbone and every task, of the backbone's. Fewer latents are the first of more.
    """
    random = torch.Generator().manual_seed(seed)
    tasks: dict[str, Maker] = {name: functools.partial(model, task=name) for name in model.tasks}
    if task is not None:
        return model.prior(task).draw(count, random), {task: tasks[task]}
    network = architecture(entry.backbone, registry).eval()
    network.load_state_dict(model.backbone_tensors())  # all of it: a generator has no head
    assert isinstance(network, Generator)
    return network.prior.draw(count, random), {BACKBONE: network, **tasks}


def rows_of(makers: Mapping[str, Maker], latents: Tensor, steps: int | None = None) -> dict[str, list[Tensor]]:
    """What each makes of the latents; or of each way from one to the next, in so many steps."""
    if not steps:
        return {name: list(made(maker, latents)) for name, maker in makers.items()}
    return {
        f"{name}_from_{place}": list(made(maker, way))
        for place, way in enumerate(between(latents, steps))
        for name, maker in makers.items()
    }


def between(latents: Tensor, steps: int) -> Tensor:
    """From each latent (N, Z) to the next one in so many equal steps, (N − 1, steps + 1, Z).

    Raises:
        OptionError: there are not two.
    """
    if len(latents) < 2:
        raise OptionError("What lies between latents needs two of them: ask for more, with -n 2.")
    shares = torch.linspace(0, 1, steps + 1).to(latents)[:, None]
    return torch.stack([(1 - shares) * a + shares * b for a, b in itertools.pairwise(latents)])


def made(maker: Maker, latents: Tensor) -> Tensor:
    """The pictures (B, 3, S, S) of latents (B, Z)."""
    with torch.no_grad():
        return torch.cat([maker(part) for part in torch.split(latents, TOGETHER)])


def fitted(model: MultiTaskModel, task: str, files: Sequence[Path]) -> list[tuple[Tensor, Tensor, float]]:
    """Of each picture in a file what the task is to make, what it makes at best (3, S, S each), and the PSNR in dB."""
    try:
        wanted = torch.stack([model.transforms(task)(open_image(file)) for file in files])
    except DataError as error:  # whose advice is for folders of images
        raise DataError(f"{str(error).partition('. ')[0]}. Name a picture that does.") from error
    found = []
    for part in torch.split(wanted, TOGETHER):
        with torch.no_grad():
            again = model.answering(task)(part)
        found += list(zip(part, again, psnr(again, part).tolist(), strict=True))
    return found


def sheet(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Pictures (3, S, S) in rows, all of one size, on white."""
    size, columns = rows[0][0].shape[-1] + MARGIN, max(map(len, rows))
    page = Image.new("RGB", (columns * size - MARGIN, len(rows) * size - MARGIN), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            page.paste(as_image(picture), (x * size, y * size))
    return page


def squared(pictures: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Pictures in as many rows as columns, or nearly so."""
    columns = math.ceil(len(pictures) ** 0.5)
    return [pictures[place : place + columns] for place in range(0, len(pictures), columns)]


def as_image(picture: Tensor) -> Image.Image:
    """A picture (3, S, S) in [−1, 1] as eight bits for each channel."""
    levels = ((picture.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def write(images: Mapping[str, Image.Image], folder: Path) -> list[Path]:
    """Write images as `<folder>/<name>.png`, each whole or not at all."""
    files = [folder / f"{name}.png" for name in images]
    for file, image in zip(files, images.values(), strict=True):
        with atomic_path(file) as temporary:
            image.save(temporary, "png")
    return files
