"""Which layers of a network a method adapts, which norms tasks own, and which layer is the classifier."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zoo.errors import OptionError
from zoo.increments import Method

PLACEMENTS = ("all", "early", "mid", "late", "half")
WEIGHTED = (nn.Conv2d, nn.Linear)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# These modules of torch read their layers' weights without calling the layers (torch's attention always, its encoder
# layers on their fast path), so nothing put in a layer's place would act.
READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Layers:
    """Module paths within one backbone."""

    adapted: tuple[str, ...]
    norms: tuple[str, ...]
    head: str
    second: frozenset[str] = frozenset()  # the second convolution of each block, the fourth, …


@dataclass(frozen=True)
class Placement:
    """A choice of layers by glob patterns over module paths; what is left None follows the papers.

    Attributes:
        layers: the Conv2d and Linear layers to adapt. By default all but the classifier and, unless the
            method adapts it too, the stem: the first convolution (FTN, Section 4.1.1, by its counts).
        norms: the norms that each task owns. By default all, for a method with task norms, else none.
        head: the path of the classifier. By default what timm declares, else the last Conv2d or Linear layer.
        placement: which of the layers to adapt (residual adapters, Section 3.2): "all"; "early", "mid" or "late", the
            first third of the stages, the last, or those between; "half", the second convolution of each block, a block
            being a module with several convolutions as its children.
    """

    layers: Sequence[str] | None = None
    norms: Sequence[str] | None = None
    head: str | None = None
    placement: str = "all"

    def find(self, backbone: nn.Module, method: Method) -> Layers:
        """The layers of `backbone` that this choice means.

        Raises:
            OptionError: no layer matches a pattern, or the one that does cannot be adapted.
        """
        modules = dict(backbone.named_modules())
        called = {p: m for p, m in modules.items() if p and not isinstance(modules[p.rpartition(".")[0]], READERS)}
        weighted = [path for path, module in called.items() if isinstance(module, WEIGHTED)]
        if not weighted:
            raise OptionError(f"{type(backbone).__name__} has no Conv2d or Linear layer inside it to adapt.")
        head = self.head or _declared_head(backbone) or weighted[-1]
        if head not in weighted:
            raise OptionError(f"The head {head!r} is no Conv2d or Linear layer; such are {_some(weighted)}.")
        body = [path for path in weighted if path != head]
        stem = next((path for path in body if isinstance(modules[path], nn.Conv2d)), None)
        norms = [path for path, module in called.items() if isinstance(module, NORMS)]

        adapted = [path for path in body if method.linear or isinstance(modules[path], nn.Conv2d)]
        adapted = [path for path in adapted if method.stem or path != stem]
        second = frozenset(_second_of_blocks([path for path in body if isinstance(modules[path], nn.Conv2d)]))
        if self.layers is not None:
            adapted = _match(self.layers, body, "layers to adapt")
        adapted = [] if method.increment is None else _placed(self.placement, adapted, second)
        computed = [path for path in adapted if "weight" not in modules[path]._parameters]
        if computed:
            raise OptionError(
                f"{computed[0]} computes its weight (by weight norm or a parametrization); remove that first, "
                "or leave the layer out with layers=…."
            )
        if self.norms is not None:
            norms = _match(self.norms, norms, "norms")
        elif not method.norms:
            norms = []
        return Layers(tuple(adapted), tuple(norms), head, second)


def _placed(placement: str, paths: list[str], second: frozenset[str]) -> list[str]:
    """Those of the layers that a placement means."""
    if placement not in PLACEMENTS:
        raise OptionError(f"The placement must be one of {', '.join(PLACEMENTS)}, not {placement!r}.")
    if placement == "all":
        return paths
    if placement == "half":
        if not any(path in second for path in paths):
            raise OptionError(
                "No block has several convolutions as children, to take the second of. Name them: layers=…."
            )
        return [path for path in paths if path in second]
    stages = list(dict.fromkeys(_stage(path) for path in paths))
    if len(stages) < 3:
        raise OptionError(
            f"The placement {placement!r} needs three stages at least, not {_some(stages)}. Name layers with layers=…."
        )
    third = len(stages) // 3
    chosen = {"early": stages[:third], "mid": stages[third:-third], "late": stages[-third:]}[placement]
    return [path for path in paths if _stage(path) in chosen]


def _stage(path: str) -> str:
    """The stage that a layer belongs to: its path up to the first number, such as `layer1` or `stages.2`."""
    match = re.match(r"(?:[^.]*\.)*?[^.]*\d+(?=\.|$)", path)
    return match[0] if match else path


def _second_of_blocks(convolutions: list[str]) -> list[str]:
    """The second convolution of each block, the fourth, …, a block being a module with several of them as children."""
    blocks: dict[str, list[str]] = {}
    for path in convolutions:
        blocks.setdefault(path.rpartition(".")[0], []).append(path)
    return [path for block in blocks.values() for path in block[1::2]]


def _declared_head(backbone: nn.Module) -> str | None:
    """The classifier's path as timm's models state it, where it is one layer."""
    declared = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier")
    if not isinstance(declared, str):
        return None
    return declared if isinstance(dict(backbone.named_modules()).get(declared), WEIGHTED) else None


def _match(patterns: Sequence[str], paths: Sequence[str], what: str) -> list[str]:
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise OptionError(f"The pattern {pattern!r} matches none of the {what}; such are {_some(paths)}.")
    return [path for path in paths if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:8]) + (f", … ({len(paths)} in all)" if len(paths) > 8 else "")
