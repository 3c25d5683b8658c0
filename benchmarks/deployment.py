"""The forms in which several tasks leave: bytes, memory, time to open and to run, against a whole graph for each.

    python benchmarks/deployment.py [--rounds 15] [--json benchmarks/results/deployment.json]
    python benchmarks/deployment.py --profile [--json benchmarks/results/deployment_profile.json]

Six tasks of 345, 200, 102, 102, 15 and 7 classes on networks with random weights: times do not depend on them.
Everything that a ratio compares is timed in turn in one process on one thread, in ONNX Runtime's ordinary sessions. The
memory of a form is what a process of its own grows by, at its peak, that opens what serves the six tasks and runs each
once. Where torch finds a GPU, the ratios of the mixed batches are measured there too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import timm
import torch
import torchvision
from record import save
from zoo.export import Adapted, to_adapters, to_int8, to_mixed, to_onnx, to_shared

import zoo
from zoo.backbones import build
from zoo.cli.tables import show
from zoo.models.adapted import TaskModel
from zoo.verification.timing import interleaved, medians, ratio

CLASSES = (345, 200, 102, 102, 15, 7)
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], str, int, int]] = {  # method, rank, side of the images
    "resnet50 R=20": (lambda: torchvision.models.resnet50(weights=None), "ftn", 20, 224),
    "resnet34 R=40": (lambda: torchvision.models.resnet34(weights=None), "ftn", 40, 224),
    "vit_b32 R=4": (lambda: timm.create_model("vit_base_patch32_224"), "ftn_qv", 4, 224),
    "resnet20 R=8": (lambda: build("zoo/resnet20"), "ftn", 8, 32),
}
KINDS = ("whole", "shared", "mixed", "adapters", "int8")  # forms that are files
FORMS, MIXED = ("resnet50 R=20", "resnet20 R=8"), ("resnet50 R=20", "resnet34 R=40", "vit_b32 R=4")


def adapted(network: str, tasks: int = len(CLASSES)) -> TaskModel:
    """A network with tasks, their tensors away from where they begin."""
    torch.manual_seed(0)
    make, method, rank, side = NETWORKS[network]
    model = TaskModel(make().eval(), method, {"rank": rank})
    for number in range(tasks):
        names = [str(label) for label in range(CLASSES[number % len(CLASSES)])]
        model.add_task(zoo.Task.of(f"task{number}", names, zoo.Preprocessing(side, None)))
        for tensor in model.task_tensors(f"task{number}").values():
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand_like(tensor))
    return model


def opened(file: Path) -> ort.InferenceSession:
    """An ordinary session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def write_forms(model: TaskModel, folder: Path) -> None:
    """Every form of a model's tasks, each in a folder of its own."""
    for task in model.tasks:
        whole, size = folder / "whole" / f"{task}.onnx", model.task(task).preprocessing.input_size
        to_onnx(model.fuse(task), whole, task=model.task(task))
        to_int8(whole, folder / "int8" / f"{task}.onnx", [torch.randn(8, *size)])  # times do not depend on the images
        to_shared(model, task, folder / "shared" / f"{task}.onnx")
    to_mixed(model, folder / "mixed" / "all.onnx")
    to_adapters(model, folder / "adapters")


def servers(folder: Path, form: str) -> list[Callable[[np.ndarray], Any]]:  # type: ignore[type-arg]
    """What answers for each task, of images."""
    files = sorted((folder / form).glob("*.onnx"))
    if form == "adapters":
        base = opened(folder / form / "base.onnx")
        each = [Adapted(base, file) for file in sorted((folder / form).glob("*.onnx_adapter"))]
        return [lambda x, one=one: one.run(None, {"images": x}) for one in each]
    if form == "mixed":
        graph, tasks = opened(files[0]), len(CLASSES)
        return [lambda x: graph.run(None, {"images": x, "task": np.arange(len(x)) % tasks})]
    each_graph = [opened(file) for file in files]
    return [lambda x, one=one: one.run(None, {"images": x}) for one in each_graph]


def peak() -> float:
    """MB that this process has held at most, as Linux counts; getrusage would count what its parent held, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def memory(network: str, form: str, folder: Path) -> float:
    """MB that a process grows by that serves all tasks in a form."""
    call = [sys.executable, __file__, "--memory", network, form, str(folder)]
    return round(float(subprocess.run(call, check=True, capture_output=True, text=True).stdout), 1)


def serve_once(network: str, form: str, folder: Path) -> None:
    """Open what serves all tasks in a form, and run each of them once."""
    side = NETWORKS[network][3]
    if form != "swap":
        for serve in servers(folder, form):
            serve(np.zeros((1, 3, side, side), np.float32))
        return
    model = adapted(network)
    plain = model.fuse(model.tasks[0])
    with torch.no_grad():
        for task in model.tasks:
            zoo.swap(plain, model, task)
            plain(torch.zeros(1, 3, side, side))


def forms(network: str, rounds: int) -> list[dict[str, Any]]:
    """A line for each form."""
    model, side = adapted(network), NETWORKS[network][3]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_forms(model, folder)
        first = {"mixed": "all.onnx", "adapters": "base.onnx"}
        opening = interleaved(
            {k: lambda k=k: opened(folder / k / first.get(k, "task0.onnx")) for k in KINDS}, rounds=7, warmup=1
        )
        ready = {kind: servers(folder, kind)[0] for kind in KINDS}
        found = {}
        for batch in (1, 8):
            images = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
            found[batch] = interleaved({k: lambda k=k, x=images: ready[k](x) for k in KINDS}, rounds)
        rows = []
        for kind in KINDS:
            size = sum(file.stat().st_size for file in (folder / kind).iterdir())
            rows.append({
                "network": network, "form": kind, "MB on disk": round(size / 1e6, 2),
                "MB of memory": memory(network, kind, folder),
                "to open": round(ratio(opening, kind, "whole"), 2),
                **{f"batch of {batch}": round(ratio(seconds, kind, "whole"), 3) for batch, seconds in found.items()},
            })  # fmt: skip
    adapters = sum(t.nbytes for task in model.tasks for t in model.task_tensors(task).values())
    backbone = sum(t.nbytes for t in model.backbone_tensors().values())
    return [*rows, {**swapped(model, network, side, rounds), "MB on disk": round((backbone + adapters) / 1e6, 2)}]


def swapped(model: TaskModel, network: str, side: int, rounds: int) -> dict[str, Any]:
    """A swap, in milliseconds and in passes of one image of the fused network, in torch."""
    plain, image = model.fuse(model.tasks[0]).eval(), torch.randn(1, 3, side, side)
    turn = iter(range(10**9))
    with torch.no_grad():
        calls = {
            "swap": lambda: zoo.swap(plain, model, model.tasks[-1 - next(turn) % 3]),
            "pass": lambda: plain(image),
        }
        seconds = interleaved(calls, rounds)
    milliseconds = 1000 * medians(seconds)["swap"]
    return {
        "network": network,
        "form": "swap",
        "MB of memory": memory(network, "swap", Path()),
        "ms": round(milliseconds, 1),
        "passes": round(ratio(seconds, "swap", "pass"), 2),
    }


def mixtures(network: str, tasks: int, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """A batch of rows of several tasks against one fused task at the same batch, in torch and in ONNX Runtime."""
    model, side = adapted(network, tasks).to(device), NETWORKS[network][3]
    images, numbers = torch.randn(batch, 3, side, side, device=device), torch.arange(batch, device=device) % tasks
    plain, mixed = model.fuse("task0"), model.mixed()
    with torch.no_grad():
        seconds = interleaved({"mixed": lambda: mixed(images, numbers), "plain": lambda: plain(images)}, rounds, 2)
        found, expected = mixed(images[:1], numbers[:1]), plain(images[:1])
        difference = float((found[:, : expected.shape[1]] - expected).abs().max() / expected.abs().max())
    row = {
        "network": network, "tasks": tasks, "batch": batch, "device": device,
        "torch": round(ratio(seconds, "mixed", "plain"), 3), "MB stacked": round(mixed.stacked / 1e6, 1),
        "difference": f"{difference:.0e}", "ONNX Runtime": None,
    }  # fmt: skip
    if device == "cpu" and tasks == len(CLASSES):
        with tempfile.TemporaryDirectory() as place:
            to_mixed(model, Path(place, "all.onnx"))
            to_onnx(plain, Path(place, "one.onnx"), task=model.task("task0"))
            graph, one = opened(Path(place, "all.onnx")), opened(Path(place, "one.onnx"))
            feed = {"images": images.numpy(), "task": numbers.numpy()}
            calls = {"mixed": lambda: graph.run(None, feed), "plain": lambda: one.run(None, {"images": feed["images"]})}
            row["ONNX Runtime"] = round(ratio(interleaved(calls, rounds, 2), "mixed", "plain"), 3)
    return row


def profile(network: str, rounds: int = 4) -> list[dict[str, Any]]:
    """Milliseconds by operator of a mixed batch of eight and of the fused network's, as ONNX Runtime counts them."""
    model, side = adapted(network), NETWORKS[network][3]
    images = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
    spent: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        to_mixed(model, Path(place, "mixed.onnx"))
        to_onnx(model.fuse("task0"), Path(place, "fused.onnx"), task=model.task("task0"))
        for form, more in (("mixed", {"task": np.arange(8) % len(CLASSES)}), ("fused", {})):
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 4, True
            options.profile_file_prefix = str(Path(place, form))
            graph = ort.InferenceSession(str(Path(place, f"{form}.onnx")), options, providers=["CPUExecutionProvider"])
            for _ in range(rounds):
                graph.run(None, {"images": images, **more})
            spent[form] = Counter()
            for event in json.loads(Path(graph.end_profiling()).read_text()):
                if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
                    spent[form][event["args"]["op_name"]] += event["dur"] / 1000 / rounds
    rows = [
        {"network": network, "operator": name, "mixed, ms": round(ms, 1), "fused, ms": round(spent["fused"][name], 1)}
        for name, ms in spent["mixed"].most_common(8)
    ]
    total = {"mixed, ms": round(spent["mixed"].total(), 1), "fused, ms": round(spent["fused"].total(), 1)}
    return [*rows, {"network": network, "operator": "all", **total}]


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--profile", "profiled", is_flag=True, help="Tell instead where a mixed graph's time goes.")
@click.option("--memory", "memory_of", nargs=3, hidden=True)
def main(rounds: int, file: Path | None, profiled: bool, memory_of: tuple[str, str, str] | None) -> None:
    if memory_of:
        before = peak()
        serve_once(memory_of[0], memory_of[1], Path(memory_of[2]))
        click.echo(peak() - before)
        return
    torch.set_num_threads(1)
    if profiled:
        rows = [row for network in MIXED for row in profile(network)]
        show(rows)
        save(file, rows, peers=("onnxruntime-gpu", "timm"))
        return
    start, rows = time.time(), [row for network in FORMS for row in forms(network, rounds)]
    show([row for row in rows if row["form"] != "swap"])
    show([row for row in rows if row["form"] == "swap"])
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cases = [(network, tasks, batch) for network in MIXED for tasks, batch in ((6, 8), (6, 32), (40, 8))]
    mixed = [mixtures(*case, max(3, rounds // 3), device) for device in devices for case in cases]
    show(mixed)
    click.echo(f"{time.time() - start:.0f} s")
    save(file, {"rounds": rounds, "forms": rows, "mixed": mixed}, peers=("onnxruntime-gpu", "timm"))


if __name__ == "__main__":
    main()
