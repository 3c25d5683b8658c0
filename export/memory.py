"""What torch's exporter would keep of each export for the life of the process, given back.

Of a small network that is 0.7 MB: a service that exports again and again would grow by it. The environment of
the shapes holds fake tensors whose sizes, in C++, hold it again, where no garbage collection sees the circle; methods
of it remember it; and the source of every graph module is kept for tracebacks.
"""

from __future__ import annotations

import contextlib
import linecache
from collections.abc import Iterator

import torch
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv


@contextlib.contextmanager
def sources_forgotten() -> Iterator[None]:
    """Forget the sources of the graph modules that are made meanwhile."""
    known = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})  # torch's own, under no promised name
    before = set(known)
    try:
        yield
    finally:
        for name in known.keys() - before:
            known.pop(name, None)
            linecache.cache.pop(name, None)


def forget_shapes(program: torch.onnx.ONNXProgram) -> None:
    """Let go what an exported program knew of its shapes, which nobody asks once the graph is there."""
    assert program.exported_program is not None
    fakes = [node.meta.get("val") for node in program.exported_program.graph.nodes]
    modes = {id(mode): mode for fake in fakes if (mode := getattr(fake, "fake_mode", None)) is not None}
    for mode in modes.values():
        if mode.shape_env is not None:
            mode.shape_env.tracked_fakes = []
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()
