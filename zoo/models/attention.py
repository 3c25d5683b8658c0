"""The projections of attention modules: which rows of which layer's weight make queries, keys, values and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

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
    queries and values. Modules whose packed layer has other rows are left out (`_packs_otherwise`).
    """
    found = {}
    for path, module in backbone.named_modules():
        heads = next((n for n in (getattr(module, name, None) for name in HEADS) if isinstance(n, int)), 0)
        layers = {name: m for name, m in module.named_children() if name in MAKES and isinstance(m, nn.Linear)}
        made = {kind for name in layers for kind in MAKES[name]}
        if heads < 1 or not {"query", "value"} <= made or _packs_otherwise(module, layers, heads):
            continue
        for name, layer in layers.items():
            kinds = MAKES[name]
            size = layer.out_features // len(kinds)
            rows = {kind: slice(i * size, (i + 1) * size) for i, kind in enumerate(kinds)}
            found[f"{path}.{name}" if path else name] = Projection(heads, rows)
    return found


def _packs_otherwise(module: nn.Module, layers: Mapping[str, nn.Linear], heads: int) -> bool:
    """Whether no block of rows makes the queries of all heads, or a layer makes something else than its name says.

    timm's MaxViT (`head_first`), TinyViT and EfficientFormer (`key_dim`) run over the heads before the projections;
    GCViT's global attention (`use_global`) calls `qkv` what makes keys and values alone.
    """
    if getattr(module, "head_first", False) or getattr(module, "use_global", False) or hasattr(module, "key_dim"):
        return True
    return any(layer.out_features % (heads * len(MAKES[name])) for name, layer in layers.items() if name != "proj")


def reads_weight(module: nn.Module, child: str) -> bool:
    """Whether an attention module uses the weight of its packed layer without calling it (timm's BEiT, Swin V2)."""
    return child == "qkv" and getattr(module, "q_bias", None) is not None
