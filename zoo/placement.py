"""Which layers of a network a method adapts, which norms tasks own, and which layer is the classifier."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zoo.errors import OptionError
from zoo.increments import Method

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


@dataclass(frozen=True)
class Placement:
    """A choice of layers by glob patterns over module paths; what is left None follows the papers.

    Attributes:
        layers: the Conv2d and Linear layers to adapt. By default all but the classifier and, unless the
            method adapts it too, the stem: the first convolution (FTN, Section 4.1.1, by its counts).
        norms: the norms that each task owns. By default all, for a method with task norms, else none.
        head: the path of the classifier. By default what timm declares, else the last Conv2d or Linear layer.
    """

    layers: Sequence[str] | None = None
    norms: Sequence[str] | None = None
    head: str | None = None

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

        adapted = [] if method.increment is None else [path for path in body if method.stem or path != stem]
        if method.increment is not None and self.layers is not None:
            adapted = _match(self.layers, body, "layers to adapt")
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
        return Layers(tuple(adapted), tuple(norms), head)


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
