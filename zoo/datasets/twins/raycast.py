"""Where rays hit solids: the geometry of the scenes of `rooms`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hits:
    """What N rays hit first: depth (N), infinite where nothing; unit normals (N, 3) towards the ray; the face's number.

    A face is a flat or a rounded part of a thing's surface: where two meet there is an edge.
    """

    depth: Array
    normal: Array
    face: npt.NDArray[np.int64]


Solid = Callable[[Array, Array], Hits]  # from origins (3) or (N, 3) and directions (N, 3) of rays


def block(center: Array, half: Array, angle: float) -> Solid:
    """A box of so many metres to each side of its centre, turned about the vertical axis."""
    turn = about_y(angle)

    def hits(origin: Array, direction: Array) -> Hits:
        o, d = (origin - center) @ turn, direction @ turn
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (-half - o) / d, (half - o) / d
        near, far = np.fmin(a, b), np.fmax(a, b)
        axis = near.argmax(1)
        depth = near.max(1)
        hit = (depth <= far.min(1)) & (depth > 1e-6)
        sign = -np.sign(np.take_along_axis(np.broadcast_to(d, near.shape), axis[:, None], 1)[:, 0])
        normal = np.eye(3)[axis] * sign[:, None]
        return Hits(np.where(hit, depth, np.inf), normal @ turn.T, 2 * axis + (sign > 0))

    return hits


def ball(center: Array, radius: float) -> Solid:
    """A sphere."""

    def hits(origin: Array, direction: Array) -> Hits:
        o = origin - center
        depth = _first_root((direction**2).sum(-1), (o * direction).sum(-1), (o**2).sum(-1) - radius**2)
        normal = (o + _finite(depth)[:, None] * direction) / radius
        return Hits(depth, normal, np.zeros(len(direction), int))

    return hits


def pillar(base: Array, radius: float, height: float) -> Solid:
    """An upright cylinder with a flat top."""

    def hits(origin: Array, direction: Array) -> Hits:
        o = np.broadcast_to(origin - base, direction.shape)
        flat, ahead = o[:, [0, 2]], direction[:, [0, 2]]
        side = _first_root((ahead**2).sum(1), (flat * ahead).sum(1), (flat**2).sum(1) - radius**2)
        rise = o[:, 1] + _finite(side) * direction[:, 1]
        side = np.where((rise >= 0) & (rise <= height), side, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            top = (height - o[:, 1]) / direction[:, 1]
        reach = flat + _finite(top)[:, None] * ahead
        top = np.where((top > 1e-6) & ((reach**2).sum(1) <= radius**2) & (direction[:, 1] < 0), top, np.inf)
        depth = np.minimum(side, top)
        normal = (o + _finite(depth)[:, None] * direction) * [1, 0, 1] / radius
        return Hits(depth, np.where((top < side)[:, None], [0.0, 1.0, 0.0], normal), (top < side).astype(int))

    return hits


def walls(size: Array) -> Solid:
    """The inside of a room of so many metres, its floor around the origin; its faces are -x, +x, -y, +y, -z, +z."""

    def hits(origin: Array, direction: Array) -> Hits:
        low, high = np.array([-size[0] / 2, 0, -size[2] / 2]), np.array([size[0] / 2, size[1], size[2] / 2])
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.where(direction > 0, (high - origin) / direction, (low - origin) / direction)
        out = np.where(direction == 0, np.inf, out)
        axis = out.argmin(1)
        sign = -np.sign(np.take_along_axis(direction, axis[:, None], 1)[:, 0])
        return Hits(out.min(1), np.eye(3)[axis] * sign[:, None], 2 * axis + (sign < 0))

    return hits


def _first_root(a: Array, b: Array, c: Array) -> Array:
    """The smaller root of a·t² + 2b·t + c where it is positive, else infinity."""
    square = b**2 - a * c
    with np.errstate(invalid="ignore", divide="ignore"):
        root = (-b - np.sqrt(square)) / a
    return np.where((square > 0) & (root > 1e-6), root, np.inf)


def _finite(depth: Array) -> Array:
    return np.where(np.isfinite(depth), depth, 0.0)


def about_y(angle: float) -> Array:
    """What turns a point, a row, about the vertical axis by so many radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
