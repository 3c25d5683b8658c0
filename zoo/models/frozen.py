"""What keeps a frozen network as it is: copies that share nothing with it, and buffers that move for no pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from zoo.errors import OptionError, sentence
from zoo.increments.forms import WEIGHTED

ALIKE = {2: 3e-2, 4: 1e-4, 8: 1e-8}  # how far two ways to compute the same may differ, by the bytes of a number
OWN = ("_parameters", "_buffers", "_modules")  # of a module: what torch keeps for it


def copy_of(module: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A copy that shares nothing with the module, tensors that it has computed from its parameters included.

    Args:
        memo: what takes the place of some parts, by their ids.

    Raises:
        OptionError: some part cannot be copied.
    """
    memo = dict(memo or {})
    for part in module.modules():
        if id(part) in memo:
            continue
        held = {key: value for key, value in part.__dict__.items() if key not in OWN}
        for tensor in [*pytree.tree_leaves(held), *part._buffers.values()]:
            # Torch copies no tensor with a history, such as the weight that `torch.nn.utils.prune` sets in each pass.
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        with torch.inference_mode(False):
            return copy.deepcopy(module, memo)
    except Exception as error:  # whatever an attribute's class raises: a file, a lock, a generator
        raise OptionError(
            f"The network {type(module).__name__} cannot be copied ({sentence(error)}). Take out of it what no copy "
            "can be made of, such as open files, and set it again afterwards."
        ) from error


def input_dtype(network: nn.Module) -> torch.dtype:
    """The type of number that a network takes: that of its first layer with a weight."""
    for layer in network.modules():
        weight = layer._parameters.get("weight") if isinstance(layer, WEIGHTED) else None
        if weight is not None and weight.is_floating_point():
            return weight.dtype
    return torch.float32


def trainable(module: nn.Module) -> nn.Module:
    """The module, all its parameters that can have gradients to be trained."""
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def rests(module: nn.Module) -> bool:
    """Whether a frozen module has to stay in evaluation mode, lest it change: a norm, or another keeper of statistics.

    A module without parts that has floating-point buffers is taken for one: norms of one's own, the vectors of a
    spectral norm, code books. Dropout stays on.
    """
    if isinstance(module, _NormBase):
        return True
    alone = next(module.children(), None) is None
    return alone and any(buffer is not None and buffer.is_floating_point() for buffer in module._buffers.values())


class Buffers:
    """The buffers of a frozen network that a pass could move, and what they are to hold.

    That is what they hold when they are recorded. Where they move, in a pass or while one is computed again for its
    gradient, another tensor with the recorded values takes their place; the moved one may belong to a graph.

    Args:
        modules: those whose own buffers are meant.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._places = [(module._buffers, name) for module in modules for name in module._buffers]
        self.record()

    def record(self) -> None:
        """Take what the buffers hold now for what they are to hold."""
        self._known = [_known(held[name]) for held, name in self._places]

    def put_back(self) -> None:
        """Undo what has moved. A buffer of another shape or place than the recorded one was changed on purpose."""
        if torch.compiler.is_compiling():
            return
        for number, (held, name) in enumerate(self._places):
            buffer, known = held.get(name), self._known[number]
            if buffer is None or known is None or (buffer is known[0] and version(buffer) == known[1]):
                continue
            copied = known[2]
            if (buffer.shape, buffer.device, buffer.dtype) == (copied.shape, copied.device, copied.dtype):
                with torch.inference_mode(False):
                    fresh = copied.clone()
                self._known[number] = fresh, version(fresh), copied
                held[name] = fresh  # last: another thread's pass may move it from here on
            else:
                self._known[number] = _known(buffer)

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Take what the block makes of the buffers, which moves or converts them, for what they are to hold.

        At once, and not in the next pass, beside which others may run.
        """
        self.put_back()
        yield
        self.record()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Undo, when the block ends, what has moved in it or before it."""
        self.put_back()
        try:
            yield
        finally:
            self.put_back()


def _known(buffer: Tensor | None) -> tuple[Tensor, int, Tensor] | None:
    """A buffer, how often it was written to, and a copy."""
    if buffer is None:
        return None
    with torch.inference_mode(False):
        return buffer, version(buffer), buffer.detach().clone()


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; torch does not count for those that were made in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute in the tensors' own types, and make tensors that can be trained, whatever surrounds the block."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
