"""The tensor-ring format of a weight (TRMTL, Eq. 1), and two ways to apply a weight that is kept in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo.errors import OptionError

Shape = tuple[int, int, int, int]  # of a core: R_k, M_k, N_k, R_{k+1}
LARGEST_CORE = 2**28  # numbers: a gigabyte, where a core is to be the smaller form of a weight


def core_shapes(in_modes: Sequence[int], out_modes: Sequence[int], ranks: int | Sequence[int]) -> tuple[Shape, ...]:
    """The shapes of the cores of a ring.

    Args:
        in_modes, out_modes: M_1 … M_D and N_1 … N_D.
        ranks: R_1 … R_D; the ring is closed by R_{D+1} = R_1. A single number serves for all.

    Raises:
        OptionError: the lengths differ, a number is below 1, or a core is larger than any is taken.
    """
    count = len(in_modes)
    around = [ranks] * count if isinstance(ranks, int) else list(ranks)
    if not count or len(out_modes) != count or len(around) != count:
        raise OptionError(
            f"A ring needs as many input modes as output modes and ranks; got {list(in_modes)}, {list(out_modes)} and "
            f"ranks {around}."
        )
    if min(*in_modes, *out_modes, *around) < 1:
        raise OptionError(f"Modes and ranks are at least 1; got {list(in_modes)}, {list(out_modes)}, ranks {around}.")
    shapes = tuple(zip(around, in_modes, out_modes, [*around[1:], around[0]], strict=True))
    if (largest := max(math.prod(shape) for shape in shapes)) > LARGEST_CORE:
        raise OptionError(f"Ranks {around} make a core of {largest:,} numbers; at most {LARGEST_CORE:,} are taken.")
    return shapes


class Ring(nn.Module):
    """A matrix (∏M_k, ∏N_k) whose element at i = (i_1 … i_D), j = (j_1 … j_D) is `Tr{G_1[i_1, j_1] … G_D[i_D, j_D]}`.

    Args:
        shapes: of the cores G_k, (R_k, M_k, N_k, R_{k+1}) each, as `core_shapes` makes them.
        borrowed: cores that another module owns, by their place in the ring, from 0; (R_k, M_k N_k, R_{k+1}) each, as
            this one keeps its own.

    Raises:
        OptionError: neighbouring ranks differ, or a borrowed core has another shape than its place.
    """

    def __init__(self, shapes: Sequence[Shape], borrowed: Mapping[int, nn.Parameter] | None = None) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        for k, shape in enumerate(self.shapes):
            following = self.shapes[(k + 1) % len(self.shapes)]
            if shape[3] != following[0]:
                raise OptionError(f"Core {k + 1} ends with rank {shape[3]}, and the next begins with {following[0]}.")
        self.borrowed = dict(borrowed or {})  # a plain dictionary: what is in it belongs to another module
        for k, core in self.borrowed.items():
            if tuple(core.shape) != (kept := stored(self.shapes[k])):
                raise OptionError(f"Core {k + 1} is {tuple(core.shape)} where {kept} is needed.")
        places = [k for k in range(len(self.shapes)) if k not in self.borrowed]
        self.own = nn.ParameterDict({str(k): nn.Parameter(torch.empty(stored(self.shapes[k]))) for k in places})

    @property
    def cores(self) -> list[Tensor]:
        """G_1 … G_D, (R_k, M_k, N_k, R_{k+1}) each."""
        kept = [self.borrowed[k] if k in self.borrowed else self.own[str(k)] for k in range(len(self.shapes))]
        return [core.view(shape) for core, shape in zip(kept, self.shapes, strict=True)]

    def reset(self, variance: float) -> None:
        """Draw the ring's own cores from a normal distribution, so that the matrix has elements of this variance.

        An element is a sum over all r_1 … r_D of products of one element of each core. Elements of zero mean,
        independent within and between cores, give a variance of `∏R_k · ∏E[G_k²]`, whatever the depth. Borrowed cores
        are taken as they stand: the own ones, d in number, make up for them with
        `E[G²] = (variance / (∏R_k · ∏_borrowed E[G_k²]))^(1/d)`, and share it evenly. With the variance 2 / (fan in +
        fan out) the layer begins as Xavier's does.
        """
        if not self.own:
            return
        given = math.prod(float(core.detach().square().mean()) for core in self.borrowed.values())
        ranks = math.prod(shape[0] for shape in self.shapes)
        square = (variance / (ranks * max(given, 1e-30))) ** (1 / len(self.own))
        for core in self.own.values():
            nn.init.normal_(core, std=math.sqrt(square))

    def dense(self) -> Tensor:
        """The matrix itself, (∏M_k, ∏N_k): each half of the ring opened by itself, then the two closed to a ring."""
        cores, half = self.cores, halfway(self.shapes)
        if len(cores) == 1:
            return torch.einsum("amna->mn", cores[0])
        left, right = chain(cores[:half]), chain(cores[half:])  # (A, M, N, B), (B, M', N', A)
        closed = torch.einsum("amnb,bija->minj", left, right)  # (M, M', N, N')
        return closed.reshape(left.shape[1] * right.shape[1], -1)

    def contract(self, x: Tensor, backwards: bool = False) -> Tensor:
        """`x @ dense()` for rows x (B, ∏M_k), core by core; the matrix is never made.

        Args:
            backwards: begin with the last core, `Tr{G_1 … G_D} = Tr{G_Dᵀ … G_1ᵀ}`; what stands between grows less where
                that one has many inputs and few outputs.
        """
        cores = self.cores
        if backwards:
            x = x.reshape(len(x), *(core.shape[1] for core in cores)).permute(0, *range(len(cores), 0, -1))
            cores = [core.permute(3, 1, 2, 0) for core in reversed(cores)]
        first, *others = cores
        state = x.reshape(len(x), first.shape[1], -1)  # (B, M_1, M_2 … M_D)
        opened = torch.einsum("bml,amnr->bnlar", state, first)  # (B, N_1, M_2 … M_D, R_1, R_2)
        y = close(opened, others)
        if backwards:
            y = y.view(len(y), *(core.shape[2] for core in cores)).permute(0, *range(len(cores), 0, -1)).flatten(1)
        return y

    def extra_repr(self) -> str:
        shown = " ".join("×".join(map(str, shape)) + ("*" if k in self.borrowed else "") for k, shape in
                         enumerate(self.shapes))  # fmt: skip
        return f"{shown}{', * not its own' if self.borrowed else ''}"


def stored(shape: Shape) -> tuple[int, int, int]:
    """The form in which a core is kept."""
    return shape[0], shape[1] * shape[2], shape[3]


def halfway(shapes: Sequence[Shape]) -> int:
    """Before which core to part a ring, so that the halves are of like sizes; at least one core stands in each."""
    sizes = [shape[1] * shape[2] for shape in shapes]
    return min(range(1, len(sizes)), key=lambda k: math.prod(sizes[:k]) + math.prod(sizes[k:]), default=1)


def chain(cores: Sequence[Tensor]) -> Tensor:
    """The product of neighbouring cores, (R_first, ∏M_k, ∏N_k, R_last)."""
    made, *others = cores
    for core in others:
        product = torch.einsum("amnr,rijc->aminjc", made, core)
        made = product.reshape(made.shape[0], made.shape[1] * core.shape[1], -1, core.shape[3])
    return made


def close(state: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Contract what an opened ring has made of some rows with its remaining cores, and close it; (B, ∏N_k).

    Args:
        state: (B, N, M, R_1, R): output modes that are done, input modes of `cores`, first rank, and the rank between.
    """
    if not cores:
        return torch.einsum("bnlaa->bn", state)
    for core in cores[:-1]:
        rows, done, _, first, rank = state.shape
        state = state.reshape(rows, done, core.shape[1], -1, first, rank)
        state = torch.einsum("bnmlar,rmjc->bnjlac", state, core).flatten(1, 2)  # (B, N·N_k, M_{k+1} …, R_1, R_{k+1})
    return torch.einsum("bnmar,rmja->bnj", state, cores[-1]).flatten(1)
