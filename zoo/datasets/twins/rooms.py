"""rooms: the small twin of NYUD. Ray-cast indoor scenes with exact edges, segmentation, normals and depth.

A room with a door, a window and a rug, and in it boxes, shelves, balls and pillars, under one lamp. Everything is drawn
from the split and the number of the scene, so that a scene is the same on every machine.

World axes are x to the right, y up and z ahead, in metres. A ray's direction has length 1 along the camera's axis, so
that how far along it something is hit is that thing's depth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision import tv_tensors

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.datasets.dense import DepthMap, NormalMap
from zoo.datasets.twins.raycast import Array, Solid, about_y, ball, block, pillar, walls
from zoo.errors import UnknownNameError

HEIGHT, WIDTH = 48, 64
TRAIN, TEST = 600, 200
FLOOR, CEILING, WALL, DOOR, WINDOW, RUG, BOX, SHELF, BALL, PILLAR = range(10)
CLASSES = ("floor", "ceiling", "wall", "door", "window", "rug", "box", "shelf", "ball", "pillar")
UP = np.array([0.0, 1.0, 0.0])
NOISE = 0.02  # standard deviation of the camera's, of values in [0, 1]

Random = np.random.RandomState


# -- scenes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A room, the things in it, and the camera.

    Attributes:
        things: class and form of each.
        panels: class of each flat thing on a face of the room, that face, and its rectangle there: the least and the
            greatest of the two coordinates that vary, in metres.
        camera: where it is; axes: its directions right, up and ahead, in rows.
    """

    size: Array
    things: list[tuple[int, Solid]]
    panels: list[tuple[int, int, Array]]
    camera: Array
    axes: Array
    lamp: Array


def draw(rng: Random) -> Scene:
    """A random scene."""
    size = np.array([rng.uniform(3, 6), rng.uniform(2.4, 3.2), rng.uniform(4, 7)])
    camera = np.array([rng.uniform(-0.3, 0.3) * size[0], rng.uniform(1.1, 1.8), -0.42 * size[2]])
    yaw, pitch = rng.uniform(-0.5, 0.5), rng.uniform(-0.4, 0.05)
    cos, sin = np.cos(pitch), np.sin(pitch)
    axes = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ about_y(yaw).T
    things = [_thing(rng, size) for _ in range(rng.randint(3, 7))]
    panels = [(RUG, 2, _rug(rng, size))]
    for face, width in ((0, size[2]), (1, size[2]), (5, size[0])):
        kind = rng.choice([DOOR, WINDOW, WALL])
        along = rng.uniform(-0.25, 0.35) * width
        if kind == DOOR:
            panels.append((DOOR, face, np.array([[along - 0.45, 0], [along + 0.45, 2.0]])))
        elif kind == WINDOW:
            wide = rng.uniform(0.5, 0.9)
            panels.append((WINDOW, face, np.array([[along - wide, 1.0], [along + wide, rng.uniform(1.8, 2.2)]])))
    lamp = np.array([rng.uniform(-0.3, 0.3) * size[0], size[1] - 0.2, rng.uniform(-0.4, 0.2) * size[2]])
    return Scene(size, things, panels, camera, axes, lamp)


def _rug(rng: Random, size: Array) -> Array:
    center = np.array([rng.uniform(-0.3, 0.3) * size[0], rng.uniform(-0.2, 0.35) * size[2]])
    half = rng.uniform(0.4, 0.9, 2)
    return np.array([center - half, center + half])


def _thing(rng: Random, size: Array) -> tuple[int, Solid]:
    kind = rng.choice([BOX, SHELF, BALL, PILLAR])
    place = np.array([rng.uniform(-0.4, 0.4) * size[0], 0.0, rng.uniform(-0.1, 0.42) * size[2]])
    if kind == BOX:
        half = rng.uniform(0.15, 0.5, 3)
        return BOX, block(place + UP * half[1], half, rng.uniform(0, np.pi))
    if kind == SHELF:  # tall and narrow, its back to the side or the end of the room
        half = np.array([rng.uniform(0.4, 0.8), rng.uniform(0.7, 1.1), 0.18])
        wall = rng.choice([-1, 0, 1])
        if wall:
            place[0] = wall * (size[0] / 2 - half[2])
        else:
            place[2] = size[2] / 2 - half[2]
        return SHELF, block(place + UP * half[1], half, wall * np.pi / 2)
    if kind == BALL:
        radius = rng.uniform(0.15, 0.45)
        return BALL, ball(place + UP * radius, radius)
    return PILLAR, pillar(place, rng.uniform(0.1, 0.3), rng.uniform(0.5, size[1]))


# -- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What the camera sees, by pixel: the picture (H, W, 3) uint8, classes (H, W), edges (H, W) 0 or 1, metres (H, W)
    along the camera's axis, and unit normals (H, W, 3): x to the right, y up, z towards the camera.
    """

    image: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.uint8]
    edges: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    normals: npt.NDArray[np.float32]


def view(scene: Scene, rng: Random) -> View:
    """Cast a ray through the centre of each pixel; colours are drawn at random, for classes have none of their own."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5 - WIDTH / 2, HEIGHT / 2 - np.arange(HEIGHT) - 0.5)
    focal = 0.8 * WIDTH  # a view of 64 degrees
    rays = np.stack([x / focal, y / focal, np.ones_like(x)], 2).reshape(-1, 3) @ scene.axes
    surface = walls(scene.size)(scene.camera, rays)
    depth, normal = surface.depth, surface.normal
    thing, face = np.zeros(len(rays), int), surface.face
    classes = np.choose(face // 2, [WALL, FLOOR, WALL])
    classes[face == 3] = CEILING
    points = scene.camera + depth[:, None] * rays
    for number, (kind, wall, rectangle) in enumerate(scene.panels, 1):
        flat = points[:, [2, 1]] if wall < 2 else points[:, [0, 2]] if wall == 2 else points[:, [0, 1]]
        inside = (face == wall) & (thing == 0) & ((flat >= rectangle[0]) & (flat <= rectangle[1])).all(1)
        thing[inside], classes[inside] = number, kind
    for number, (kind, solid) in enumerate(scene.things, 1 + len(scene.panels)):
        hit = solid(scene.camera, rays)
        nearer = hit.depth < depth
        depth, normal = np.where(nearer, hit.depth, depth), np.where(nearer[:, None], hit.normal, normal)
        thing, face = np.where(nearer, number, thing), np.where(nearer, hit.face, face)
        classes = np.where(nearer, kind, classes)
    points = scene.camera + depth[:, None] * rays
    surfaces = 8 * thing + face
    shade = _light(scene, points, normal)
    painted = np.where(thing > 0, thing + 2, np.choose(face // 2, [0, face - 1, 0]))  # walls, floor and ceiling apart
    image = _colors(rng, painted, points) * shade[:, None] + rng.normal(0, NOISE, (len(rays), 3))
    seen = normal @ scene.axes.T * [1, 1, -1]  # in the camera's axes, z towards it
    shape = (HEIGHT, WIDTH)
    return View(
        np.round(255 * image.clip(0, 1)).astype(np.uint8).reshape(*shape, 3),
        classes.astype(np.uint8).reshape(shape),
        _borders(surfaces.reshape(shape)),
        depth.astype(np.float32).reshape(shape),
        seen.astype(np.float32).reshape(*shape, 3),
    )


def _light(scene: Scene, points: Array, normal: Array) -> Array:
    """How bright each point is: everywhere a little, more where it faces the lamp and nothing stands between."""
    towards = scene.lamp - points
    distance = np.linalg.norm(towards, axis=1)
    facing = (normal * towards).sum(1).clip(0) / distance
    lit = np.ones(len(points), bool)
    for _, solid in scene.things:
        lit &= solid(points + 1e-3 * normal, towards).depth > 1
    return np.asarray(0.4 + 0.75 * facing * lit / (1 + 0.03 * distance**2))


def _colors(rng: Random, painted: npt.NDArray[np.int64], points: Array) -> Array:
    """The colour of each point: one for all that is painted alike, and a paler pattern of none, stripes or squares."""
    color = np.zeros((len(points), 3))
    for number in range(painted.max() + 1):
        where, pattern = painted == number, rng.choice(["plain", "stripes", "squares"])
        first, second, period = rng.uniform(0.15, 1.0, 3), rng.uniform(0.15, 1.0, 3), rng.uniform(0.2, 0.6)
        cells = np.floor(points[where] / period + 1e-3).astype(int)  # no cell ends just where a surface lies
        odd = {"plain": 0 * cells[:, 0], "stripes": cells[:, 0], "squares": cells.sum(1)}[pattern] % 2
        color[where] = first + 0.35 * odd[:, None] * (second - first)
    return color


def _borders(surfaces: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """1 where a pixel's surface is another than that of the pixel to the right or below."""
    edges = np.zeros(surfaces.shape, np.uint8)
    edges[:, :-1] |= surfaces[:, :-1] != surfaces[:, 1:]
    edges[:-1] |= surfaces[:-1] != surfaces[1:]
    return edges


def render(split: str, index: int) -> View:
    """Scene `index` of a split, "train" or "test"."""
    rng = Random([["train", "test"].index(split), index])
    return view(draw(rng), rng)


@functools.cache
def rendered(split: str, count: int) -> list[View]:
    """The first scenes of a split, made once per process, a few milliseconds each."""
    return [render(split, index) for index in range(count)]


# -- the benchmark -------------------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[tuple[str, ...], Callable[[View], torch.Tensor]]] = {
    "edge": (("edge",), lambda view: tv_tensors.Mask(torch.from_numpy(view.edges).long())),
    "semseg": (CLASSES, lambda view: tv_tensors.Mask(torch.from_numpy(view.classes).long())),
    "normals": (("x", "y", "z"), lambda view: NormalMap(torch.from_numpy(view.normals).permute(2, 0, 1))),
    "depth": (("metres",), lambda view: DepthMap(torch.from_numpy(view.depth)[None])),
}


class RoomsImages(Images):
    """One task's view of a split; images are uint8 tensors (3, H, W), targets maps of H × W."""

    def __init__(self, task: str, split: str, count: int) -> None:
        self.target, self.views = TARGETS[task][1], rendered(split, count)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.views[index]
        return torch.from_numpy(seen.image).permute(2, 0, 1), self.target(seen)


class RoomsBenchmark(Benchmark):
    """Four tasks on 600 training and 200 test scenes of 48×64 pixels, made in memory: no data root is looked at."""

    name = "rooms"
    needs_root = False

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(TARGETS)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in TARGETS:
            raise UnknownNameError("task of rooms", task, TARGETS)
        return Splits(TARGETS[task][0], RoomsImages(task, "train", TRAIN), RoomsImages(task, "test", TEST))
