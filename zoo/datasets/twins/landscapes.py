"""landscapes: the small twin of seasons. Hills, trees, water and sky under one light, drawn in four seasons.

A scene is drawn from the split and its number, so that it is the same on every machine; all seasons show the same
scenes, each in its own colours. x runs from 0 at the left to 1, y from 0 at the bottom to 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.datasets.scenery import CHANNELS
from zoo.errors import UnknownNameError

SIZE = 64  # pixels, in height and width
FINER = 2  # times as many are drawn, and averaged
TRAIN, TEST = 300, 50

Array = npt.NDArray[np.float64]
Random = np.random.RandomState


# -- scenes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A tree: where its trunk stands, how tall it is, and whether it is a conifer."""

    x: float
    height: float
    conifer: bool


@dataclass(frozen=True)
class Scene:
    """What all seasons of a place have in common.

    Attributes:
        hills: of each ridge, from the farthest: the height of its middle, and the amplitude, frequency and phase of two
            waves, (2, 3).
        trees: on the nearest ridge.
        lake: the x and the half width of its middle, and the y of its shore.
        sun: where it stands, (x, y).
    """

    hills: list[tuple[float, Array]]
    trees: list[Tree]
    lake: tuple[float, float, float]
    sun: tuple[float, float]


def draw(rng: Random) -> Scene:
    """A random scene."""
    hills = []
    for middle, roughness in ((0.62, 0.10), (0.48, 0.07), (0.34, 0.04)):
        waves = np.array(
            [[rng.uniform(0.3, 1) * roughness / n, rng.uniform(0.4, 0.9) * n, rng.uniform()] for n in (1, 2)]
        )
        hills.append((middle + rng.uniform(-0.04, 0.04), waves))
    trees = [
        Tree(rng.uniform(0.04, 0.96), rng.uniform(0.14, 0.32), bool(rng.uniform() < 0.4))
        for _ in range(rng.randint(2, 6))
    ]
    lake = (rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.45), rng.uniform(0.12, 0.22))
    return Scene(hills, trees, lake, (rng.uniform(0.1, 0.9), rng.uniform(0.72, 0.95)))


# -- seasons -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Season:
    """The colours of a season, in [0, 1]: sky above and at the horizon, ground, needles, leaves, water.

    Attributes:
        cover: how much of a crown its leaves fill.
        snow: how much of a slope, and of a conifer's top, is white.
    """

    sky: tuple[float, float, float]
    haze: tuple[float, float, float]
    ground: tuple[float, float, float]
    needles: tuple[float, float, float]
    leaves: tuple[float, float, float]
    water: tuple[float, float, float]
    cover: float = 1.0
    snow: float = 0.0


SEASONS = {
    "summer": Season((0.25, 0.50, 0.85), (0.75, 0.85, 0.95), (0.25, 0.50, 0.15), (0.08, 0.25, 0.12), (0.15, 0.42, 0.10),
                     (0.15, 0.35, 0.60)),
    "winter": Season((0.28, 0.36, 0.52), (0.62, 0.66, 0.74), (0.55, 0.55, 0.58), (0.08, 0.18, 0.15), (0.30, 0.25, 0.22),
                     (0.52, 0.64, 0.76), cover=0.5, snow=0.7),
    "spring": Season((0.45, 0.68, 0.92), (0.88, 0.92, 0.90), (0.50, 0.70, 0.25), (0.12, 0.32, 0.15), (0.92, 0.65, 0.75),
                     (0.30, 0.52, 0.65), cover=0.9),
    "autumn": Season((0.50, 0.55, 0.65), (0.90, 0.80, 0.68), (0.62, 0.45, 0.18), (0.12, 0.24, 0.12), (0.85, 0.38, 0.08),
                     (0.30, 0.36, 0.42), cover=0.85),
}  # fmt: skip


def render(scene: Scene, season: Season) -> npt.NDArray[np.uint8]:
    """The scene in a season, (64, 64, 3)."""
    size = SIZE * FINER
    places = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(places, places[::-1])
    sky, haze, white = np.array(season.sky), np.array(season.haze), np.array([0.90, 0.93, 0.98])
    glow = np.exp(-((x - scene.sun[0]) ** 2 + (y - scene.sun[1]) ** 2) / 0.012)
    height = np.clip((y - 0.5) / 0.5, 0, 1)[..., None]
    picture = height * sky + (1 - height) * haze
    picture += 0.6 * glow[..., None] * (np.array([1.0, 0.95, 0.75]) - picture)
    for number, (middle, waves) in enumerate(scene.hills):
        top, slope = _ridge(middle, waves, x)
        light = 0.80 + 0.5 * np.clip(slope * np.tanh(6 * (scene.sun[0] - x)), -0.5, 0.5)  # the side that faces the sun
        ground = (1 - season.snow) * np.array(season.ground) + season.snow * white
        near = (number + 1) / len(scene.hills)
        color = light[..., None] * (near * ground + (1 - near) * (0.5 * ground + 0.5 * haze))
        picture = np.where((y < top)[..., None], color, picture)
    middle, half, shore = scene.lake
    lake = ((x - middle) / half) ** 2 + (y / shore) ** 2 < 1
    water = 0.7 * np.array(season.water) + 0.3 * sky
    picture = np.where(lake[..., None], water * (0.85 + 0.25 * y / shore)[..., None], picture)
    for tree in sorted(scene.trees, key=lambda tree: tree.height):
        foot = _ridge(*scene.hills[-1], np.array(tree.x))[0] - 0.3 * tree.height
        picture = _planted(picture, x, y, tree, float(foot), season)
    fine = picture.clip(0, 1).reshape(SIZE, FINER, SIZE, FINER, 3).mean((1, 3))
    return np.asarray(np.round(255 * fine), np.uint8)


def _ridge(middle: float, waves: Array, x: Array) -> tuple[Array, Array]:
    """The height of a ridge at x, and how steeply it rises there."""
    angles = 2 * np.pi * (waves[:, 1] * x[..., None] + waves[:, 2])
    steep = (waves[:, 0] * 2 * np.pi * waves[:, 1] * np.cos(angles)).sum(-1)
    return middle + (waves[:, 0] * np.sin(angles)).sum(-1), steep


def _planted(picture: Array, x: Array, y: Array, tree: Tree, foot: float, season: Season) -> Array:
    """The picture with a tree in it."""
    up, aside = (y - foot) / tree.height, np.abs(x - tree.x) / tree.height
    trunk = (up > 0) & (up < 0.5) & (aside < 0.04)
    picture = np.where(trunk[..., None], np.array([0.25, 0.17, 0.10]), picture)
    if tree.conifer:
        crown = (up > 0.12) & (up < 1) & (aside < 0.26 * (1 - up) / 0.88)
        white = season.snow * np.clip((up - 0.3) / 0.5, 0, 1)[..., None]
        color = (1 - white) * np.array(season.needles) + white * np.array([0.95, 0.96, 1.0])
        return np.where(crown[..., None], color, picture)
    crown = (aside / 0.3) ** 2 + ((up - 0.68) / 0.33) ** 2 < 1
    shade = (0.75 + 0.4 * np.clip(up, 0, 1))[..., None] * np.array(season.leaves)
    return np.where(crown[..., None], season.cover * shade + (1 - season.cover) * picture, picture)


@functools.cache
def rendered(season: str, split: str, count: int) -> torch.Tensor:
    """The first scenes of a split, (count, 3, 64, 64) uint8; made once per process, a few milliseconds each."""
    scenes = (draw(Random([["train", "test"].index(split), index])) for index in range(count))
    pictures = np.stack([render(scene, SEASONS[season]) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


# -- the benchmark -------------------------------------------------------------------------------------------------


class LandscapesImages(Images):
    """A season's view of a split: uint8 tensors (3, 64, 64), all of one class."""

    def __init__(self, season: str, split: str, count: int) -> None:
        self.pictures = rendered(season, split, count)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pictures[index], 0


class LandscapesBenchmark(Benchmark):
    """Four seasons of 300 scenes to train on and 50 to test on, made in memory: no data root is looked at."""

    name = "landscapes"
    needs_root = False

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(SEASONS)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in SEASONS:
            raise UnknownNameError("task of landscapes", task, SEASONS)
        return Splits(CHANNELS, LandscapesImages(task, "train", TRAIN), LandscapesImages(task, "test", TEST))
