"""`shapes`: the procedural twin of DomainNet. Twelve shapes, rendered in six domains, 32×32 RGB, no download.

Every image has its own seed, made of domain, split and index, and every draw comes from numpy's frozen
`RandomState`: item i of a split is the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.errors import UnknownNameError

Array = npt.NDArray[np.float64]
Random = np.random.RandomState

SIZE = 32
TRAIN_PER_CLASS, SOURCE_PER_CLASS, TEST_PER_CLASS = 60, 400, 50


# -- shapes: closed outlines around the origin, within the unit circle ---------------------------------------------


def _arc(start: float, end: float, points: int, radius: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> Array:
    angles = np.linspace(start, end, points)
    return np.stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> Array:
    angles = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _regular(corners: int) -> Array:
    return _arc(0, 2 * np.pi * (1 - 1 / corners), corners)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, y + 2], axis=1) / 16


def _path(*points: tuple[float, float]) -> Array:
    return np.array(points, dtype=np.float64)


OUTLINES: dict[str, list[Array]] = {  # the even-odd rule makes the second outline of a shape a hole
    "arrow": [_path((-1, 0.28), (0.1, 0.28), (0.1, 0.75), (1, 0), (0.1, -0.75), (0.1, -0.28), (-1, -0.28))],
    "circle": [_arc(0, 2 * np.pi * 23 / 24, 24, 0.9)],
    "crescent": [np.concatenate([_arc(0.9, 2 * np.pi - 0.9, 18), _arc(-1.95, -4.33, 12, 0.84, (0.93, 0))])],
    "cross": [
        _path((-0.3, 1), (0.3, 1), (0.3, 0.3), (1, 0.3), (1, -0.3), (0.3, -0.3),
              (0.3, -1), (-0.3, -1), (-0.3, -0.3), (-1, -0.3), (-1, 0.3), (-0.3, 0.3))
    ],
    "ell": [_path((-0.7, 1), (-0.1, 1), (-0.1, -0.35), (0.8, -0.35), (0.8, -0.95), (-0.7, -0.95))],
    "heart": [_heart()],
    "hexagon": [_regular(6)],
    "ring": [_arc(0, 2 * np.pi * 23 / 24, 24), _arc(0, 2 * np.pi * 17 / 18, 18, 0.55)],
    "semicircle": [_arc(-np.pi / 2, np.pi / 2, 16, 1.0, (-0.4, 0))],
    "square": [_regular(4)],
    "star": [_star(5, 0.42)],
    "triangle": [_regular(3)],
}  # fmt: skip
CLASSES = tuple(OUTLINES)


def _distance(outlines: list[Array], points: Array) -> Array:
    """Signed distance of points (N, 2) to the nearest edge, negative inside by the even-odd rule; (N,)."""
    nearest = np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=bool)
    for outline in outlines:
        start, end = outline, np.roll(outline, -1, axis=0)
        edge = end - start  # (E, 2)
        offset = points[:, None] - start  # (N, E, 2)
        along = np.clip((offset * edge).sum(2) / (edge**2).sum(1), 0, 1)  # (N, E)
        gap = offset - along[..., None] * edge
        nearest = np.minimum(nearest, np.sqrt((gap**2).sum(2)).min(1))
        crosses = (start[:, 1] > points[:, 1:]) != (end[:, 1] > points[:, 1:])
        slope = edge[:, 0] / np.where(edge[:, 1] == 0, 1e-12, edge[:, 1])
        inside ^= (crosses & (offset[..., 0] < slope * offset[..., 1])).sum(1) % 2 == 1
    return np.where(inside, -nearest, nearest)


# -- canvas helpers; an image is (SIZE, SIZE, 3) in [0, 1], a mask (SIZE, SIZE) -------------------------------------

_AXIS = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
_GRID = np.stack(np.meshgrid(_AXIS, -_AXIS), axis=2).reshape(-1, 2)  # pixel centres, y upwards, (SIZE², 2)
_PIXEL = 2 / SIZE


def _field(shape: str, rng: Random, size: tuple[float, float], wobble: float = 0.0) -> Array:
    """Signed distance image (SIZE, SIZE) of a shape in a random pose; `wobble` bends the plane around it."""
    radius, angle = rng.uniform(*size), rng.uniform(0, 2 * np.pi)
    center = rng.uniform(-1, 1, 2) * (0.9 - radius)
    shear, stretch = rng.uniform(-0.25, 0.25), rng.uniform(0.8, 1.25)
    cos, sin = np.cos(angle), np.sin(angle)
    pose = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch])
    points = _GRID + _bend(rng, wobble) if wobble else _GRID
    outlines = [outline @ (radius * pose.T) + center for outline in OUTLINES[shape]]
    return _distance(outlines, points).reshape(SIZE, SIZE)


def _bend(rng: Random, amount: float) -> Array:
    """A smooth random displacement of every pixel, (SIZE², 2)."""
    waves = rng.uniform(3, 9, (3, 2)) * rng.choice([-1, 1], (3, 2))
    phase = rng.uniform(0, 2 * np.pi, (3, 2))
    bent: Array = amount * np.sin((_GRID @ waves.T)[:, :, None] + phase).mean(1)
    return bent


def _noise(rng: Random, cells: int) -> Array:
    """Smooth noise in [0, 1] of about so many cells across, (SIZE, SIZE)."""
    knots = rng.uniform(0, 1, (cells + 1, cells + 1))
    at = np.arange(SIZE) * cells / SIZE
    low, part = at.astype(int), at % 1
    rows = knots[low] * (1 - part)[:, None] + knots[low + 1] * part[:, None]
    field: Array = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return field


def _fill(distance: Array) -> Array:
    return np.clip(0.5 - distance / _PIXEL, 0, 1)


def _line(distance: Array, width: float) -> Array:
    """A stroke of `width` pixels along the outline."""
    return np.clip(width / 2 + 0.5 - np.abs(distance) / _PIXEL, 0, 1)


def _over(image: Array, mask: Array, color: Array | float) -> Array:
    return image * (1 - mask[..., None]) + mask[..., None] * color


def _plain(color: Array | float) -> Array:
    return np.ones((SIZE, SIZE, 3)) * color


def _color(rng: Random, low: float = 0.0, high: float = 1.0) -> Array:
    return rng.uniform(low, high, 3)


def _apart(rng: Random, other: Array, least: float) -> Array:
    """A colour whose brightness differs from another's by `least` or more."""
    while True:
        color = _color(rng)
        if abs(color.mean() - other.mean()) >= least:
            return color


# -- domains -------------------------------------------------------------------------------------------------------


def _clipart(shape: str, rng: Random) -> Array:
    """Flat colour inside a dark contour, on a flat pale ground."""
    distance = _field(shape, rng, (0.4, 0.75))
    ground = _color(rng, 0.75, 1)
    image = _over(_plain(ground), _fill(distance), _apart(rng, ground, 0.2))
    return _over(image, _line(distance, rng.uniform(1, 2)), rng.uniform(0, 0.2))


def _sketch(shape: str, rng: Random) -> Array:
    """Grey pencil: a double outline, hatched, on paper."""
    distance = _field(shape, rng, (0.4, 0.8), wobble=0.04)
    image = _plain(rng.uniform(0.85, 1)) - 0.08 * _noise(rng, 16)[..., None]
    angle, gap = rng.uniform(0, np.pi), rng.uniform(2.5, 5)
    stripes = np.sin((_GRID @ [np.cos(angle), np.sin(angle)]).reshape(SIZE, SIZE) / _PIXEL * 2 * np.pi / gap)
    hatch = 0.5 * (stripes > 0.4) * _noise(rng, 6)
    hatch = hatch * (_fill(distance) if rng.uniform() < 0.5 else 1 - _fill(distance))
    image = _over(image, hatch, 0.4)
    image = _over(image, rng.uniform(0.5, 0.9) * _line(distance, 0.8), 0.2)
    return _over(image, 0.5 * _line(distance + rng.uniform(-1.5, 1.5) * _PIXEL, 0.6), 0.3)


def _painting(shape: str, rng: Random) -> Array:
    """Brush strokes: uneven pigment along one direction, ragged edges, colours that bleed."""
    distance = _field(shape, rng, (0.45, 0.8), wobble=0.07)
    ground = _color(rng)
    colors = [ground, _apart(rng, ground, 0.25)]
    angle = rng.uniform(0, np.pi)
    along = (_GRID @ [np.cos(angle), np.sin(angle)]).reshape(SIZE, SIZE)
    strokes = np.sin(along * rng.uniform(12, 25) + 5 * _noise(rng, 4)) * 0.5 + 0.5
    ragged = distance + 0.1 * (_noise(rng, 12) - 0.5)
    image = _plain(colors[0]) + 0.4 * (_noise(rng, 5) - 0.5)[..., None] * _color(rng, -1, 1)
    image = _over(image, 0.9 * _fill(ragged), colors[1])
    image = image + 0.22 * (strokes - 0.5)[..., None] + 0.3 * (_noise(rng, 8)[..., None] - 0.5) * _color(rng, -1, 1)
    return image * (0.85 + 0.3 * _noise(rng, 3))[..., None]


def _quickdraw(shape: str, rng: Random) -> Array:
    """One thin wobbly stroke, black on white, with gaps."""
    distance = _field(shape, rng, (0.4, 0.85), wobble=0.12)
    stroke = _line(distance, rng.uniform(0.5, 1.2))
    gaps = _noise(rng, 5) > rng.uniform(0.15, 0.3)
    return 1 - _plain(1.0) * (stroke * gaps)[..., None]


def _infograph(shape: str, rng: Random) -> Array:
    """A small flat icon among panels, bars and lines of text-like marks."""
    ground = _color(rng, 0.6, 1)
    image = _plain(ground)
    for _ in range(rng.randint(1, 4)):
        x, y, w, h = rng.randint(0, SIZE - 4, 4)
        image[y : y + 3 + h // 2, x : x + 3 + w // 2] = _color(rng, 0.3, 1)
    distance = _field(shape, rng, (0.3, 0.5), wobble=0.02)
    under = image[_fill(distance) > 0.5]
    color = _apart(rng, under.mean(0) if len(under) else ground, 0.25)
    image = _over(image, _line(distance - _PIXEL, 2.5), ground)
    image = _over(image, _fill(distance), color)
    for _ in range(rng.randint(3, 7)):
        _text_line(image, rng, _apart(rng, ground, 0.3))
    return image


def _text_line(image: Array, rng: Random, color: Array) -> None:
    x, y, length = rng.randint(0, SIZE - 6), rng.randint(0, SIZE - 1), rng.randint(4, 14)
    letters = np.flatnonzero(rng.uniform(0, 1, min(length, SIZE - x)) < 0.7) + x
    image[y : y + 1 + rng.randint(2), letters] = color


def _real(shape: str, rng: Random) -> Array:
    """A lit, grainy solid with a cast shadow on a cluttered, uneven ground."""
    distance = _field(shape, rng, (0.4, 0.75))
    ground = _color(rng, 0.15, 0.85)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (_GRID @ [np.cos(angle), np.sin(angle)]).reshape(SIZE, SIZE)
    image = _plain(ground) + 0.35 * (_noise(rng, 4)[..., None] - 0.5) + 0.2 * slope[..., None]
    image += 0.2 * (_noise(rng, 10)[..., None] - 0.5) * _color(rng, -1, 1)
    shift = rng.randint(1, 4, 2)
    shadow = np.roll(_fill(distance + _PIXEL), shift, axis=(0, 1))
    image = _over(image, 0.5 * shadow, 0.05)
    height = np.clip(-distance / 0.25, 0, 1)
    gy, gx = np.gradient(np.sqrt(height * (2 - height)))
    light = np.clip(0.65 + 0.25 * slope + 1.5 * (gx * np.cos(angle) - gy * np.sin(angle)), 0, 1.6)
    body = _apart(rng, ground, 0.15) * light[..., None] + 0.12 * (_noise(rng, 14)[..., None] - 0.5)
    image = _over(image, _fill(distance), body)
    return image + rng.normal(0, 0.04, image.shape)


DOMAINS: dict[str, Callable[[str, Random], Array]] = {
    "clipart": _clipart,
    "sketch": _sketch,
    "painting": _painting,
    "quickdraw": _quickdraw,
    "infograph": _infograph,
    "real": _real,
}


def render(domain: str, split: str, index: int) -> npt.NDArray[np.uint8]:
    """Image `index` of a domain's split, uint8 (32, 32, 3); its class is `CLASSES[index % 12]`."""
    rng = Random([list(DOMAINS).index(domain), ["train", "test"].index(split), index])
    image = DOMAINS[domain](CLASSES[index % len(CLASSES)], rng)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


@functools.cache
def rendered(domain: str, split: str, count: int) -> npt.NDArray[np.uint8]:
    """The first images of a domain's split, uint8 (count, 32, 32, 3), made once per process, a millisecond each."""
    return np.stack([render(domain, split, index) for index in range(count)])


class ShapesImages(Images):
    """One split of one domain; images are uint8 tensors (3, 32, 32)."""

    def __init__(self, domain: str, split: str, per_class: int) -> None:
        self.pixels = rendered(domain, split, per_class * len(CLASSES))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.pixels[index]).permute(2, 0, 1), index % len(CLASSES)


class ShapesBenchmark(Benchmark):
    """Six domains, each of 720 training images and 600 test images, made in memory: no data root is looked at.

    Args:
        name: "shapes", or "shapes_source": the same with 4,800 training images, to pre-train backbones on. It is to
            shapes what ImageNet is to DomainNet.
    """

    needs_root = False

    def __init__(self, name: str = "shapes") -> None:
        self.name, self.train_per_class = name, {"shapes": TRAIN_PER_CLASS, "shapes_source": SOURCE_PER_CLASS}[name]

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(DOMAINS)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in DOMAINS:
            raise UnknownNameError("domain of shapes", task, DOMAINS)
        test = ShapesImages(task, "test", TEST_PER_CLASS)
        return Splits(CLASSES, ShapesImages(task, "train", self.train_per_class), test)
