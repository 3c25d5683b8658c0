"""`clips`: the procedural twin of UCF11. Eleven motions of a shape, as two tasks; small and grey; no download."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.errors import UnknownNameError

Array = npt.NDArray[np.float64]
Random = np.random.RandomState
SIZE, FRAMES = 16, 12
TRAIN, TEST = 40, 40  # clips per motion
MOTIONS = {
    "five": ("left to right", "right to left", "downwards", "upwards", "bounce"),
    "six": ("clockwise", "anticlockwise", "zigzag", "grow", "shrink", "blink"),
}


def _path(motion: str, rng: Random) -> tuple[Array, Array, Array]:
    """The shape in each frame: where it is (T, 2), from -1 to 1 with y downwards, its size and its brightness (T,)."""
    t = np.linspace(0, 1, FRAMES)
    reach, start, drift = rng.uniform(0.4, 0.8), rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4)
    speed, still, one = rng.uniform(0.7, 1.0), np.full(FRAMES, drift), np.ones(FRAMES)
    run, turn = reach * speed * (2 * t - 1), start + 2 * np.pi * speed * t
    size: Array = 0.35 * rng.uniform(0.7, 1.3) * one
    light: Array = one
    ways = {
        "left to right": (run, still), "right to left": (-run, still),
        "downwards": (still, run), "upwards": (still, -run),
        "bounce": (still, reach - 2 * reach * np.abs(np.sin(2 * np.pi * speed * t + start))),
        "clockwise": (reach * np.cos(turn), reach * np.sin(turn)),
        "anticlockwise": (reach * np.cos(turn), -reach * np.sin(turn)),
        "zigzag": (run, 0.5 * np.sign(np.sin(4 * np.pi * speed * t + start))),
    }  # fmt: skip
    x, y = ways.get(motion, (still, rng.uniform(-0.4, 0.4) * one))
    if motion in ("grow", "shrink"):
        size = size * (0.5 + 1.5 * (t if motion == "grow" else 1 - t))
    if motion == "blink":
        light = np.where(np.sin(6 * np.pi * speed * t + start) > 0, 1.0, 0.15)
    return np.stack([x, y], 1), size, light


def render(task: str, split: str, index: int) -> npt.NDArray[np.uint8]:
    """Clip `index` of a task's split, uint8 (12, 16, 16); its motion is number `index` modulo the task's motions."""
    motions = MOTIONS[task]
    rng = Random([200 + list(MOTIONS).index(task), ["train", "test"].index(split), index])
    places, sizes, light = _path(motions[index % len(motions)], rng)
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE * 2 - 1
    power = rng.choice([1.0, 2.0, 6.0])  # a diamond, a disc, a square
    ground, ink = rng.uniform(0, 0.35), rng.uniform(0.65, 1)
    frames = []
    for (across, down), size, bright in zip(places, sizes, light, strict=True):
        distance = (np.abs(x - across) ** power + np.abs(y - down) ** power) ** (1 / power)
        mask = np.clip(0.5 + (size - distance) * SIZE / 2, 0, 1) * bright
        frames.append(ground * (1 - mask) + ink * mask)
    noisy = np.stack(frames) + rng.normal(0, 0.08, (FRAMES, SIZE, SIZE))
    return np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


@functools.cache
def rendered(task: str, split: str) -> npt.NDArray[np.uint8]:
    """All clips of a task's split, made once per process, a millisecond each."""
    count = len(MOTIONS[task]) * (TRAIN if split == "train" else TEST)
    return np.stack([render(task, split, index) for index in range(count)])


class Clips(Images):
    """One split of one task; clips are uint8 tensors (12, 1, 16, 16)."""

    def __init__(self, task: str, split: str) -> None:
        self.pixels, self.motions = rendered(task, split), len(MOTIONS[task])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.pixels[index])[:, None], index % self.motions


class ClipsBenchmark(Benchmark):
    """Five motions and six, 40 training and 40 test clips of each, made in memory: no data root is looked at."""

    name, needs_root = "clips", False

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(MOTIONS)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in MOTIONS:
            raise UnknownNameError("task of clips", task, MOTIONS)
        return Splits(MOTIONS[task], Clips(task, "train"), Clips(task, "test"))
