"""Pictures that tasks make: of latents that are drawn, of those between them, and of those that fit pictures best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from zoo.catalog.task import GENERATION
from zoo.datasets import open_image
from zoo.errors import OptionError
from zoo.kinds.generation import psnr
from zoo.models.adapted import TaskModel
from zoo.models.latents import fit
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import atomic_path

MARGIN = 2  # pixels between the pictures of a sheet
TOGETHER = 64  # pictures in a pass
BACKBONE = "backbone"  # what the network without any task is called, in the names of files


def maker(model: MultiTaskModel) -> TaskModel:
    """The model, if its tasks make pictures; raises OptionError if one does not."""
    other = [name for name in model.tasks if model.task(name).kind != GENERATION]
    if other or not isinstance(model, TaskModel):
        raise OptionError(f"{(other or model.tasks)[0]} makes no pictures; `zoo predict` tells what it sees in one.")
    return model


def drawn(model: TaskModel, task: str, count: int, seed: int) -> Tensor:
    """Latents (count, Z) from where those of a task's training pictures lie; fewer are the first of more."""
    return model.prior(task).draw(count, torch.Generator().manual_seed(seed))


def between(latents: Tensor, steps: int) -> Tensor:
    """From each latent (N, Z) to the next one in so many equal steps, (N − 1, steps + 1, Z).

    Raises:
        OptionError: there are not two.
    """
    if len(latents) < 2:
        raise OptionError("What lies between latents needs two of them: ask for more, with -n 2.")
    shares = torch.linspace(0, 1, steps + 1).to(latents)[:, None]
    return torch.stack([(1 - shares) * a + shares * b for a, b in itertools.pairwise(latents)])


def made(network: nn.Module, latents: Tensor, **named: Any) -> Tensor:
    """The pictures (B, 3, S, S) of latents (B, Z)."""
    with torch.no_grad():
        return torch.cat([network(part, **named) for part in latents.split(TOGETHER)])


def fitted(model: TaskModel, task: str, files: Sequence[Path]) -> list[tuple[Tensor, Tensor, float]]:
    """Of each picture in a file what the task is to make, what it makes at best (3, S, S each), and the PSNR in dB."""
    wanted = torch.stack([model.transforms(task)(open_image(file)) for file in files])
    found = []
    for part in wanted.split(TOGETHER):
        latents = fit(lambda z: model(z, task=task), model.taken(part), model.prior(task))
        again = made(model, latents, task=task)
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
