"""The proof that what a task adds acts: its layers are used, gradients arrive, and the fused network agrees.

Any module can be adapted, and nobody knows how it uses its layers until it runs. So it is watched while it runs.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.errors import OptionError, ZooError, sentence
from zoo.increments import Method
from zoo.models.frozen import copy_of, exact_arithmetic, input_dtype
from zoo.models.layers import AdaptedLayer, Site, TaskHead
from zoo.models.multitask import MultiTaskModel
from zoo.models.selection import Selection, Stack

log = logging.getLogger(__name__)
Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a network is called with: by position, and by name
TOLERANCES = {1: 3e-2, 2: 3e-2, 4: 1e-5, 8: 1e-9}  # of the largest output, by the bytes of the least precise parameter
ROWS = 2  # of the first pass, on which a fused network is compared
NOISE = 0.02  # by which parameters are moved for a proof before any training: many begin where they add nothing


class Provable(MultiTaskModel):
    """A model of one network with sites, as far as a proof looks at it.

    Attributes:
        backbone: the network, with its layers replaced by sites.
        may_rest: patterns over the paths of sites that not every pass uses.
    """

    backbone: nn.Module
    method: Method
    selection: Selection
    may_rest: tuple[str, ...]

    @abstractmethod
    def serve(self, task: str | Stack, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The network's outputs for a task that the model has, unwatched."""

    @abstractmethod
    def fused(self, task: str) -> nn.Module:
        """What `fuse` gives, before it is compared."""

    @abstractmethod
    def sites(self, task: str) -> Iterator[tuple[str, Site]]:
        """The layers where `task` has something of its own, by their paths."""


def copied(call: Call) -> Call:
    """A call with tensors of its own, for a network may write to its inputs."""
    found: Call = pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, call)
    return found


def can_repeat(call: Call) -> bool:
    """Whether a network can be called so again: nothing of it is used up by being read."""
    return not any(isinstance(leaf, Iterator) for leaf in pytree.tree_leaves(call))


def two_rows(call: Call) -> Call:
    """The first rows of a batch, where all its tensors have as many rows; else the whole call. Copies."""
    leaves, form = pytree.tree_flatten(call)
    rows = {len(leaf) if leaf.ndim else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    batch = max((leaf.ndim for leaf in leaves if isinstance(leaf, Tensor)), default=0) != 3 and len(rows) == 1
    nested = any(isinstance(part, list | tuple | dict) for part in (*call[0], *call[1].values()))
    if not batch or nested:  # three dimensions may be one image; lists are of images
        return copied(call)
    found: Call = pytree.tree_unflatten([x[:ROWS] if isinstance(x, Tensor) and x.ndim else x for x in leaves], form)
    return copied(found)


def check_used(model: Provable, task: str, used: set[int]) -> None:
    """Raise OptionError unless every layer where a task has tensors of its own is among the used ones, or may rest."""
    idle = [
        path
        for path, site in model.sites(task)
        if id(site) not in used and any(True for _ in site.tasks[task].parameters()) and not _may_rest(model, path)
    ]
    if not idle:
        return
    sites = dict(model.sites(task))
    if heads := [path for path in idle if isinstance(sites[path], TaskHead)]:
        raise OptionError(
            f"The head {heads[0]} is not called when the network runs in evaluation mode, so it gives no outputs. "
            "Name the classifier: head=…."
        )
    argument = "layers" if any(isinstance(sites[path], AdaptedLayer) for path in idle) else "norms"
    raise OptionError(
        f"{_named(idle)} not called when the network runs in evaluation mode, so what {task} changes there cannot act. "
        f"Leave out what is not called with {argument}=…; or, if it may rest (auxiliary heads, experts), say so: "
        f"may_rest={_patterns(model, task, idle)}."
    )


def _patterns(model: Provable, task: str, idle: Sequence[str]) -> list[str]:
    """Patterns over module paths that mean just these of a task's layers."""
    others = [path for path, _ in model.sites(task) if path not in idle]
    found = []
    for path in idle:
        parts = path.split(".")
        above = [".".join(parts[:depth]) + ".*" for depth in range(1, len(parts))]
        found.append(next((p for p in above if not fnmatch.filter(others, p)), path))
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def blaming_the_head(model: Provable, task: str, call: Call) -> Iterator[None]:
    """Turn an error of a pass into an OptionError if the network runs with the head that it came with."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        heads = {path: site for path, site in model.sites(task) if isinstance(site, TaskHead)}
        if not heads:
            raise
        own = {path: site.tasks[task] for path, site in heads.items()}
        try:
            for site in heads.values():
                site.tasks[task] = copy_of(site.original)
            with evaluating(model), repeatable(model), torch.no_grad():
                model.serve(task, *copied(call))
        except Exception:  # no more than with the task's: the inputs are at fault
            raise error from None
        finally:
            for path, site in heads.items():
                site.tasks[task] = own[path]
        raise OptionError(
            f"With {', '.join(heads)} replaced by {task}'s own, the network does not run "
            f"({sentence(error)}): that is no classifier whose number of outputs is free. "
            "Name the one that is: head=…."
        ) from error


def check_fused(model: Provable, task: str, fused: nn.Module, call: Call) -> None:
    """Raise OptionError, naming layers, where a fused network and its model differ by more than rounding."""
    given = _acceptable(model, task, call)
    if given is None:
        return
    call, expected = given
    found = _fused_outputs(fused, task, call)
    tolerance = _tolerance(model)
    if _difference(found, expected) <= tolerance or _agree_when_wide(model, task, call):
        return
    guilty = _guilty(model, task, call, expected, tolerance)
    raise OptionError(
        f"Fused for {task}, the network differs from the model by {_difference(found, expected):.1e} of its largest "
        f"output. {_named(guilty) if guilty else 'Some layer is'} used in a way that the model cannot follow. "
        "Leave the layer out: layers=…, norms=…."
    )


def _acceptable(model: Provable, task: str, call: Call) -> tuple[Call, list[Tensor]] | None:
    """A call that the model runs on now, and its outputs: as it was, or in the type and place that the model has got.

    None where it runs on neither, such as on two rows of what is no batch: then nothing can be compared.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    kind = input_dtype(model.networks()[0])

    def moved(x: Any) -> Any:
        return x.to(like.device, kind if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else x

    for tried in (call, pytree.tree_map(moved, call)):
        try:
            return tried, _outputs(model, task, tried)
        except Exception:  # whatever a network raises that was given something else
            log.debug("%s could not be compared on %s", task, type(model.networks()[0]).__name__, exc_info=True)
    return None


def check_gradients(model: Provable, task: str, call: Call) -> list[str]:
    """Raise OptionError where a gradient of the outputs does not reach what a task trains.

    Returns:
        The parameters whose gradient is zero all over.
    """
    trained = [(name, p) for name, p in model.task_parameters(task) if p.requires_grad]
    names, parameters = [name for name, _ in trained], [p for _, p in trained]
    with evaluating(model), repeatable(model), torch.inference_mode(False), torch.enable_grad():
        outputs = [leaf for leaf in _leaves(model.serve(task, *copied(call))) if leaf.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if outputs and parameters:  # in a direction of chance: outputs may have a sum that never changes
            total = torch.stack([(leaf.float() * torch.randn_like(leaf.float())).sum() for leaf in outputs]).sum()
            found = torch.autograd.grad(total, parameters, allow_unused=True)
    lost = [n for n, gradient in zip(names, found, strict=True) if gradient is None]
    sites = {path for path, _ in model.sites(task) if any(name.startswith(f"{path}.") for name in lost)}
    if stuck := [path for path, _ in model.sites(task) if path in sites and not _may_rest(model, path)]:
        raise OptionError(
            f"{_named(stuck)} out of the gradient's reach, so what {task} changes there cannot be trained. Take out "
            f"what detaches it; or leave it out with layers=…, norms=…; or allow it to rest: may_rest={[stuck[0]]}."
        )
    return [n for n, gradient in zip(names, found, strict=True) if gradient is not None and not bool(gradient.any())]


@contextlib.contextmanager
def moved(model: Provable, task: str) -> Iterator[None]:
    """A task's parameters, each moved a little, until the block ends; then as they were, bit for bit."""
    kept = {name: tensor.detach().clone() for name, tensor in model.task_tensors(task).items()}
    try:
        with torch.no_grad(), repeatable(model):
            for _, parameter in model.task_parameters(task):
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter), alpha=NOISE)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in model.task_tensors(task).items():
                tensor.copy_(kept[name])


@contextlib.contextmanager
def on_images(model: Provable, inputs: Sequence[Any]) -> Iterator[None]:
    """Tell, before a training, that the network does not run on a task's images."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:  # whatever the network raises
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        raise OptionError(
            f"{type(model.backbone).__name__} does not run on images of {shapes} in evaluation mode: "
            f"{sentence(error)}. Is the preprocessing the network's?"
        ) from error


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode until the block ends, and then each part's own mode again."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Run a module as it is written, where torch.compile translates it otherwise, until the block ends."""
    translated, module._compiled_call_impl = module._compiled_call_impl, None
    try:
        yield
    finally:
        module._compiled_call_impl = translated


@contextlib.contextmanager
def repeatable(module: nn.Module) -> Iterator[None]:
    """The same random numbers in each such block, and none of them missing outside."""
    devices = {p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(0)
        yield


def _outputs(model: Provable, task: str, call: Call) -> list[Tensor]:
    with evaluating(model), repeatable(model), exact_arithmetic(), torch.no_grad():
        return _leaves(model.serve(task, *copied(call)))


def _fused_outputs(fused: nn.Module, task: str, call: Call) -> list[Tensor]:
    try:
        with repeatable(fused), exact_arithmetic(), torch.no_grad():
            inputs, named = copied(call)
            return _leaves(fused(*inputs, **named))
    except Exception as error:  # whatever the network raises, that ran before it was fused
        raise OptionError(f"Fused for {task}, the network does not run: {error}") from error


def _leaves(outputs: Any) -> list[Tensor]:
    """The tensors of numbers among a network's outputs, in any nesting."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of the same tensor; of what is finite in both."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    return max((_relative(a.double(), b.double()) for a, b in zip(found, expected, strict=True)), default=0.0)


def _relative(found: Tensor, expected: Tensor) -> float:
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    largest = float(expected[finite].abs().max())
    difference = float((found[finite] - expected[finite]).abs().max())
    return difference / largest if largest else difference


def _tolerance(model: nn.Module) -> float:
    sizes = [p.element_size() for p in model.parameters() if p.is_floating_point()]
    return TOLERANCES.get(min(sizes, default=4), 1e-5)


def _agree_when_wide(model: Provable, task: str, call: Call) -> bool:
    """Whether the two agree in double precision, so that all that made them differ was rounding."""
    try:
        wide = copy_of(model).double()
        inputs = pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, call)
        fused = wide.fused(task)
        return _difference(_fused_outputs(fused, task, inputs), _outputs(wide, task, inputs)) <= TOLERANCES[8]
    except Exception:  # a network that computes in no other type
        return False


def _guilty(model: Provable, task: str, call: Call, expected: Sequence[Tensor], tolerance: float) -> list[str]:
    """The layers, each of which by itself makes the difference when it is replaced by its plain one."""
    found = []
    for path, site in model.sites(task):
        with exact_arithmetic():
            model.backbone.set_submodule(path, site.plain(task).eval())
        try:
            if _difference(_outputs(model, task, call), expected) > tolerance:
                found.append(path)
        except Exception:  # one that does not run without its site is guilty too
            found.append(path)
        finally:
            model.backbone.set_submodule(path, site)
    return found


def _may_rest(model: Provable, path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in model.may_rest)


def _named(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    return f"{shown} {'is' if len(paths) == 1 else 'are'}"


def sums(parameters: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """What tells whether parameters were written to, be it past torch's own count: sums of values and of squares."""
    wide = ((name, parameter.detach().double()) for name, parameter in parameters.items())
    return {name: (float(values.sum()), float(values.square().sum())) for name, values in wide}


def check_kept(before: Mapping[str, tuple[float, float]], parameters: Mapping[str, Tensor]) -> None:
    """Raise OptionError where a pass has written to a frozen parameter."""
    if written := [name for name, found in sums(parameters).items() if found != before[name]]:
        raise OptionError(
            f"The network writes to its own weight {written[0]} while it runs, so no bit of it would stay. "
            "Take that out of its forward pass; a weight can be limited once, before it is frozen."
        )
