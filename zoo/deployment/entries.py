"""An entry's tasks as graphs, in the form and precision that is asked for."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.datasets import benchmark_of
from zoo.deployment import triton
from zoo.deployment.int8 import MAX_DROP, export_int8
from zoo.deployment.leaving import Exported, Leaving
from zoo.errors import CheckFailed, OptionError
from zoo.export import to_onnx

FUSED, SHARED, MIXED, ADAPTERS, TRITON = FORMS = "fused", "shared", "mixed", "adapters", "triton"  # tasks leave in
FP32, FP16, INT8 = PRECISIONS = "fp32", "fp16", "int8"  # graphs compute in


def export_entry(
    entry: Entry, registry: Registry, tasks: Sequence[str], out: Path, *, form: str = FUSED, precision: str = FP32,
    data_root: Path | None = None, weights: str | Path = "auto", preprocess: bool | str = False, provider: str = "cpu",
    max_drop: float | None = None, stack_limit: int | None = None,
) -> dict[str, Exported]:  # fmt: skip
    """Checked ONNX graphs of tasks of an entry, by task, or by all their names where one graph holds them.

    Each is compared on random inputs and, where the benchmark's images are at hand, on real ones.

    Args:
        out: a folder; for "mixed", the graph's file.
        form: "fused": each task's graph holds its whole network; "shared": all refer to one file of the backbone's
            weights; "mixed": one graph for all, each image by its own; "adapters": one graph, and a file of ONNX
            Runtime's for each task; "triton": a repository of models for that server.
        precision: "fp32", or in the form "fused" "fp16" or "int8": then `<task>.int8.onnx` lies beside each graph.
        preprocess, provider: as of `zoo.export.to_onnx`.
        max_drop: in int8, points that a task may lose; see `export_int8`.
        stack_limit: in the form "mixed", see `zoo.export.to_mixed`.

    Raises:
        ExportError: a graph cannot be made, or is not what it was made of.
        CheckFailed: tasks lose too much in int8; the others are written.
    """
    _check(form, precision, max_drop, stack_limit)
    leaving = Leaving(
        entry, registry, tasks, data_root=data_root, weights=weights, preprocess=preprocess, provider=provider
    )
    if form == TRITON:
        return triton.repository(leaving, out)
    if form == MIXED:
        return {", ".join(leaving.names): leaving.mixed(out, stack_limit)}
    if form == ADAPTERS:
        return leaving.adapters(out)
    if form == SHARED:
        return {task: leaving.shared(task, out / f"{task}.onnx") for task in leaving.names}
    if precision == INT8:
        return _in_int8(leaving, out, MAX_DROP if max_drop is None else max_drop)
    return {task: leaving.whole(task, out / f"{task}.onnx", half=precision == FP16) for task in leaving.names}


def _in_int8(leaving: Leaving, out: Path, max_drop: float) -> dict[str, Exported]:
    """Graphs in int8, each beside one in float32; raises CheckFailed, at the end, for those that lose too much."""
    benchmark, root = benchmark_of(leaving.entry), leaving.entry.images_root(leaving.data_root)
    splits = {task: benchmark.splits(task, root) for task in leaving.names}  # all, before anything is written
    found, refused = {}, []
    for task in leaving.names:
        plain, file = leaving.model.fuse(task), out / f"{task}.int8.onnx"
        whole = leaving.whole(task, out / f"{task}.onnx", plain)
        try:
            with _bare(leaving, task, whole.path, plain) as graph:
                cost = export_int8(graph, file, leaving.model.task(task), splits[task], leaving.preprocess, max_drop)
            found[task] = replace(whole, path=file, int8=cost)
        except CheckFailed as error:
            file.unlink(missing_ok=True)  # one of before is of other weights than the graph beside it
            refused.append(str(error))
    if refused:
        raise CheckFailed("\n".join(refused))
    return found


@contextlib.contextmanager
def _bare(leaving: Leaving, task: str, whole: Path, plain: nn.Module) -> Iterator[Path]:
    """The graph of a network whose inputs are prepared already: the one that was written, or one for the time being."""
    if not leaving.preprocess:
        yield whole
        return
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, whole.name)
        to_onnx(plain, bare, task=leaving.model.task(task), metadata=leaving.facts[task])
        yield bare


def _check(form: str, precision: str, max_drop: float | None, stack_limit: int | None) -> None:
    """Raise OptionError for what does not go together."""
    if form not in FORMS:
        raise OptionError(f"The form is one of {', '.join(FORMS)}, not {form!r}.")
    if precision not in PRECISIONS:
        raise OptionError(f"The precision is one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if form != FUSED and precision != FP32:
        raise OptionError(
            f"Graphs in {precision} are whole ones in files of their own: leave out the precision, or the form."
        )
    if max_drop is not None and precision != INT8:
        raise OptionError("What may be lost (--max-drop) is asked of int8 alone (--precision int8).")
    if stack_limit is not None and form != MIXED:
        raise OptionError("What may be kept whole for each task (--stack-limit) is asked of mixed graphs (--mixed).")
