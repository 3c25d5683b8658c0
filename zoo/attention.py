"""The projections of attention modules: which rows of which layer's weight make queries, keys, values and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from zoo.errors import OptionError

KINDS = ("query", "key", "value", "output")
MAKES = {  # names of the layers that timm and others give their attention modules, and what each makes, in this order
    "qkv": ("query", "key", "value"), "qk": ("query", "key"), "kv": ("key", "value"),
    "q": ("query",), "k": ("key",), "v": ("value",), "proj": ("output",),
    "q_proj": ("query",), "k_proj": ("key",), "v_proj": ("value",), "out_proj": ("output",), "o_proj": ("output",),
    "query": ("query",), "key": ("key",), "value": ("value",),
}  # fmt: skip
HEADS = ("num_heads", "n_heads", "heads", "num_attention_heads")


@dataclass(frozen=True)
class Projection:
    """One Linear layer of an attention module.

    Attributes:
        heads: n, of the attention; they are the slower index of the layer's n·d rows (of its columns, for the output).
        rows: of its weight, by what they make.
    """

    heads: int
    rows: Mapping[str, slice]


def projections(backbone: nn.Module) -> dict[str, Projection]:
    """Every projection of every attention module, by the path of its layer, in the order of the modules.

    An attention module is one that states its number of heads and has Linear layers named as in `MAKES`, which make
    queries and values. Left out are those whose packed weight runs over the heads first, so that no block of rows makes
    the queries (timm's MaxViT).
    """
    found = {}
    for path, module in backbone.named_modules():
        heads = next((n for n in (getattr(module, name, None) for name in HEADS) if isinstance(n, int)), 0)
        layers = {name: m for name, m in module.named_children() if name in MAKES and isinstance(m, nn.Linear)}
        made = {kind for name in layers for kind in MAKES[name]}
        if heads < 1 or not {"query", "value"} <= made or getattr(module, "head_first", False):
            continue
        for name, layer in layers.items():
            kinds = MAKES[name]
            size, rest = divmod(layer.out_features, len(kinds))
            if rest:
                raise OptionError(
                    f"{path}.{name} makes {', '.join(kinds)} by {layer.out_features} rows: no equal parts."
                )
            rows = {kind: slice(i * size, (i + 1) * size) for i, kind in enumerate(kinds)}
            found[f"{path}.{name}" if path else name] = Projection(heads, rows)
    return found


def reads_weights(module: nn.Module) -> bool:
    """Whether an attention module uses its packed layer's weight without calling the layer (timm's BEiT, Swin V2)."""
    return getattr(module, "q_bias", None) is not None
