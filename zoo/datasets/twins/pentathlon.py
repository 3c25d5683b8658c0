"""`pentathlon`: the procedural twin of the Visual Decathlon. Five tasks that differ in everything; no download.

Class count, image size, channels and number of images are each task's own. As in `shapes`, every image has its own seed
and comes from numpy's frozen `RandomState`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.errors import UnknownNameError

Array = npt.NDArray[np.float64]
Random = np.random.RandomState


# -- drawing; an image is (height, width) or (height, width, 3) in [0, 1] -------------------------------------------


def _grid(height: int, width: int) -> Array:
    """Pixel centres (height, width, 2) as x to the right and y downwards; the shorter side spans [-1, 1]."""
    half = min(height, width) / 2
    y, x = np.mgrid[:height, :width] + 0.5
    grid: Array = np.stack([(x - width / 2) / half, (y - height / 2) / half], axis=2)
    return grid


def _pose(rng: Random, grid: Array, turn: float, scale: tuple[float, float], shift: float) -> Array:
    """The grid as seen from a figure that is turned, scaled and shifted at random."""
    angle, size = rng.uniform(-turn, turn), rng.uniform(*scale)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    seen: Array = (grid - rng.uniform(-shift, shift, 2)) @ np.array([[cos, -sin], [sin, cos]])
    return seen


def _stroke(grid: Array, start: Array, end: Array, width: float) -> Array:
    """1 within half a width of a line from `start` to `end`, 0 beyond, with a soft edge; (height, width)."""
    along = end - start
    t = np.clip(((grid - start) @ along) / max(float(along @ along), 1e-9), 0, 1)
    distance = np.linalg.norm(grid - start - t[..., None] * along, axis=2)
    ink: Array = np.clip((width / 2 - distance) / 0.08 + 0.5, 0, 1)
    return ink


def _strokes(grid: Array, lines: list[tuple[Array, Array]], width: float) -> Array:
    ink: Array = np.max([_stroke(grid, start, end, width) for start, end in lines], axis=0)
    return ink


def _blotches(rng: Random, height: int, width: int, cells: int) -> Array:
    """Smooth noise in [0, 1] of about so many cells along the shorter side."""
    step = min(height, width) / cells
    knots = rng.uniform(0, 1, (int(height / step) + 2, int(width / step) + 2))
    y, x = np.arange(height) / step, np.arange(width) / step
    top, left = y.astype(int), x.astype(int)
    down, right = (y % 1)[:, None], x % 1
    rows = [knots[top + d][:, left] * (1 - right) + knots[top + d][:, left + 1] * right for d in (0, 1)]
    noise: Array = rows[0] * (1 - down) + rows[1] * down
    return noise


# -- the five tasks -------------------------------------------------------------------------------------------------

_CORNERS = [np.array(p) for p in ((-0.5, -0.9), (0.5, -0.9), (-0.5, 0.0), (0.5, 0.0), (-0.5, 0.9), (0.5, 0.9))]
_SEGMENTS = [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)]  # of a seven-segment display, by corners
_LIT = ("012456", "25", "02346", "02356", "1235", "01356", "013456", "025", "0123456", "012356")


def _digit(label: int, rng: Random) -> Array:
    """A house number: one digit on an uneven ground, with parts of its neighbours. (28, 28, 3)."""
    grid = _grid(28, 28)
    ground, ink = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
    ink = np.where(abs(ground - ink).max() < 0.5, 1 - np.round(ground), ink)
    image = ground + 0.3 * (_blotches(rng, 28, 28, 4)[..., None] - 0.5)
    image = np.broadcast_to(image, (28, 28, 3)).copy()
    seen, width = _pose(rng, grid, 0.25, (0.6, 0.85), 0.15), rng.uniform(0.16, 0.34)
    for offset, digit in ((0.0, label), (1.7, rng.randint(10)), (-1.7, rng.randint(10))):
        lines = [tuple(_CORNERS[i] + [offset, 0] for i in _SEGMENTS[int(s)]) for s in _LIT[digit]]
        mask = _strokes(seen, lines, width)[..., None]  # type: ignore[arg-type]
        image = image * (1 - mask) + mask * ink
    return image + rng.normal(0, 0.06, image.shape)


def _letter(label: int, rng: Random) -> Array:
    """A character of an invented alphabet, written by hand: black on white. (24, 24)."""
    plan = Random([77, label])  # what the character is; `rng` is how it is written
    points = plan.uniform(-0.8, 0.8, (5, 2)) + rng.normal(0, 0.05, (5, 2))
    lines = [(points[i], points[j]) for i, j in ((0, 1), (1, 2), (3, 4))]
    return 1 - _strokes(_pose(rng, _grid(24, 24), 0.2, (0.75, 1.0), 0.1), lines, rng.uniform(0.12, 0.2))


def _texture(label: int, rng: Random) -> Array:
    """One of eight regular patterns, at any angle and scale, in two colours. (40, 40, 3)."""
    seen = _pose(rng, _grid(40, 40), np.pi, (0.16, 0.3), 1.0)
    seen = seen + 0.25 * (np.stack([_blotches(rng, 40, 40, 3), _blotches(rng, 40, 40, 3)], axis=2) - 0.5)
    x, y = seen[..., 0], seen[..., 1]
    radius = np.hypot((x + 1) % 2 - 1, (y + 1) % 2 - 1)
    patterns: list[Callable[[], Array]] = [
        lambda: np.sin(np.pi * x),  # stripes
        lambda: np.sin(np.pi * x) * np.sin(np.pi * y),  # checks
        lambda: 0.55 - radius,  # dots
        lambda: np.abs(radius - 0.6) - 0.2,  # rings
        lambda: np.sin(np.pi * (y + np.abs(x % 2 - 1))),  # zigzags
        lambda: np.minimum(np.abs(y % 1 - 0.5), np.abs((x + np.floor(y) % 2) % 2 - 1)) - 0.1,  # bricks
        lambda: np.sin(np.pi * (y + 0.5 * np.sin(np.pi * x))),  # waves
        lambda: 0.25 - np.minimum(np.abs(x % 1 - 0.5), np.abs(y % 1 - 0.5)),  # a net
    ]
    mask = np.clip(0.5 + 4 * patterns[label](), 0, 1)[..., None]
    colors = rng.uniform(0, 1, (2, 3))
    colors[1] = np.where(abs(colors[0] - colors[1]).max() < 0.35, 1 - np.round(colors[0]), colors[1])
    light = 0.7 + 0.5 * _blotches(rng, 40, 40, 3)[..., None]
    image: Array = (colors[0] * (1 - mask) + colors[1] * mask) * light + rng.normal(0, 0.08, (40, 40, 3))
    return image


def _sign(label: int, rng: Random) -> Array:
    """A traffic sign: one of three outlines, two colours and two marks, in any light. (32, 32, 3)."""
    outline, colour, mark = label % 3, label // 3 % 2, label // 6
    seen = _pose(rng, _grid(32, 32), 0.2, (0.55, 0.85), 0.2)
    x, y = seen[..., 0], seen[..., 1]
    edge = [np.hypot(x, y), np.maximum(2 * np.abs(x) + y, -1.6 * y) * 0.9, np.abs(x) + np.abs(y)][outline]
    rim = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.8]][colour])
    image = _blotches(rng, 32, 32, 5)[..., None] * rng.uniform(0.2, 1, 3)
    for limit, paint in ((1.0, rim), (0.72, np.ones(3))):
        mask = np.clip(0.5 + (limit - edge) / 0.1, 0, 1)[..., None]
        image = image * (1 - mask) + mask * paint
    bar = np.maximum(np.abs(x) / 0.12, np.abs(y) / 0.4) if mark else np.maximum(np.abs(x) / 0.4, np.abs(y) / 0.12)
    image = image * (1 - np.clip(3 * (1.2 - bar), 0, 1)[..., None])
    return image * rng.uniform(0.35, 1.1) + rng.normal(0, 0.04, image.shape)


def _walker(label: int, rng: Random) -> Array:
    """A street scene in grey: with a person (1), or with posts and clutter alone (0). (36, 18)."""
    grid = _grid(36, 18)
    image = 0.3 + 0.5 * _blotches(rng, 36, 18, 3)
    for _ in range(rng.randint(2, 5)):  # posts, kerbs, branches
        start, end = rng.uniform([-1, -2], [1, 2]), rng.uniform([-1, -2], [1, 2])
        image += rng.uniform(-0.5, 0.5) * _stroke(grid, start, end, rng.uniform(0.1, 0.3))
    seen = _pose(rng, grid, 0.1, (0.8, 1.1), 0.15)
    step, swing = rng.uniform(0.05, 0.45), rng.uniform(0.1, 0.5)
    limbs = [((0, -0.8), (0, 0.2)), ((0, 0.2), (step, 1.5)), ((0, 0.2), (-step, 1.5)),
             ((0, -0.7), (swing, 0.1)), ((0, -0.7), (-swing, 0.1)), ((0, -1.2), (0, -1.15))]  # fmt: skip
    body = [(np.array(start, float), np.array(end, float)) for start, end in limbs]
    if not label:  # the same limbs, scattered
        body = [(a + (move := rng.uniform(-0.9, 0.9, 2)), b + move) for a, b in body]
    figure = _strokes(seen, body, rng.uniform(0.22, 0.34))
    shade = float(rng.choice([0.05, 0.95]))
    return image * (1 - figure) + shade * figure + rng.normal(0, 0.08, image.shape)


@dataclass(frozen=True)
class Discipline:
    """One task: how an image of a class is drawn, its classes, and how many images there are of each."""

    draw: Callable[[int, Random], Array]
    classes: tuple[str, ...]
    train: int  # images per class
    test: int


_SIGNS = [
    f"{c} {o} {m}" for m in ("level", "upright") for c in ("red", "blue") for o in ("disc", "triangle", "diamond")
]
_TEXTURES = ("stripes", "checks", "dots", "rings", "zigzags", "bricks", "waves", "net")
TASKS = {
    "digits": Discipline(_digit, tuple("0123456789"), 60, 40),
    "letters": Discipline(_letter, tuple(f"letter {i:02d}" for i in range(30)), 12, 12),
    "textures": Discipline(_texture, _TEXTURES, 60, 50),
    "signs": Discipline(_sign, tuple(_SIGNS), 40, 30),
    "walkers": Discipline(_walker, ("no person", "person"), 200, 200),
}


def render(task: str, split: str, index: int) -> npt.NDArray[np.uint8]:
    """Image `index` of a task's split, uint8 (height, width) or (height, width, 3); class `index % classes`."""
    rng = Random([100 + list(TASKS).index(task), ["train", "test"].index(split), index])
    image = TASKS[task].draw(index % len(TASKS[task].classes), rng)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


@functools.cache
def rendered(task: str, split: str) -> npt.NDArray[np.uint8]:
    """All images of a task's split, made once per process, in about a second."""
    known = TASKS[task]
    count = len(known.classes) * (known.train if split == "train" else known.test)
    return np.stack([render(task, split, index) for index in range(count)])


class PentathlonImages(Images):
    """One split of one task; images are uint8 tensors (channels, height, width)."""

    def __init__(self, task: str, split: str) -> None:
        self.pixels, self.classes = rendered(task, split), len(TASKS[task].classes)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.pixels[index])
        return (image[None] if image.ndim == 2 else image.permute(2, 0, 1)), index % self.classes


class PentathlonBenchmark(Benchmark):
    """Five tasks of 360 to 600 training images, made in memory: no data root is looked at."""

    name, needs_root = "pentathlon", False

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(TASKS)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in TASKS:
            raise UnknownNameError("task of pentathlon", task, TASKS)
        return Splits(TASKS[task].classes, PentathlonImages(task, "train"), PentathlonImages(task, "test"))
