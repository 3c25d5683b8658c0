"""Networks that the zoo was not made for: does each work, or is it refused by name?

    python benchmarks/any_network.py [--all] [--only PATTERN] [--json benchmarks/results/any_network.json]

Takes the smallest model of each of timm's model files and of each family of torchvision's (--all: every model) through
`zoo.adapt` with `ftn` and, where there is attention, `lora`, at its smallest input. Each has a process of its own,
with 6 GB and two minutes. A network works if, after the task's parameters were moved, fused is unfused to 1e-5 of the
largest output (or in double precision, where rounding grows), every parameter of the task gets a gradient, and no
frozen tensor changes. The result is kept after each network; what is there is not done again.
"""

from __future__ import annotations

import collections
import fnmatch
import inspect
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from record import save

MEMORY, SECONDS = 6 << 30, 120
RESULT = Path(__file__).parent / "results" / "any_network.json"


def families() -> dict[str, list[str]]:
    """The models of each of timm's files and of each family of torchvision's, by the family's name."""
    import timm
    import torchvision

    found = {f"timm/{file}": [f"timm/{name}" for name in timm.list_models(module=file)] for file in timm.list_modules()}
    for name in torchvision.models.list_models():
        module = torchvision.models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        if not module.startswith("quantization"):
            found.setdefault(f"torchvision/{module}", []).append(f"torchvision/{name}")
    return {family: names for family, names in found.items() if names}


def build(name: str) -> Any:
    library, _, rest = name.partition("/")
    if library == "timm":
        import timm

        return timm.create_model(rest)
    import torchvision

    builder = torchvision.models.get_model_builder(rest)
    downloads = "weights_backbone" in inspect.signature(builder).parameters  # what detects and segments
    return builder(weights=None, **({"weights_backbone": None} if downloads else {}))


def smallest(names: list[str]) -> str:
    """The one with the fewest parameters: as torchvision states them, or counted without making them."""
    import torch
    import torchvision

    def size(name: str) -> float:
        try:
            if name.startswith("torchvision/"):
                weights = torchvision.models.get_model_weights(name.partition("/")[2])
                return float(weights["DEFAULT"].meta["num_params"])
            with torch.device("meta"):
                return sum(parameter.numel() for parameter in build(name).parameters())
        except Exception:  # one that has to compute while it is built
            return float("inf")

    return min(names, key=size) if len(names) > 1 else names[0]


def inputs(name: str, network: Any) -> Iterator[tuple[Any, ...]]:
    """What the network may be called with, the smallest first."""
    import torch

    config = getattr(network, "pretrained_cfg", None) or {}
    for key in ("min_input_size", "input_size"):
        if config.get(key) and not (key == "min_input_size" and config.get("fixed_input_size")):
            yield (torch.randn(2, *config[key]),)
    for side in () if config else (32, 64, 112, 224, 299):
        yield (torch.randn(2, 3, side, side),)
        yield (torch.randn(2, 3, 16, side, side),)
        yield ([torch.rand(3, side, side), torch.rand(3, side, side)],)
    for side in () if config else (128,):
        yield torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)


def fits(network: Any, arguments: tuple[Any, ...]) -> bool:
    import torch

    try:
        with torch.no_grad():
            network.eval()(*arguments)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return True


def leaves(outputs: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def apart(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value of the same tensor."""
    pairs = zip(leaves(found), leaves(expected), strict=True)
    return max((float((a - b).abs().max() / b.abs().max()) for a, b in pairs if b.numel()), default=0.0)


def judge(name: str, method: str) -> tuple[str, str]:
    """How a network fares under a method: a word, and why."""
    import copy

    import torch

    import zoo

    torch.manual_seed(0)
    network = build(name)
    given = next((arguments for arguments in inputs(name, network) if fits(network, arguments)), None)
    if given is None:
        return "no input", "the network ran on none of the inputs that were tried"
    try:
        model = zoo.adapt(network, {"a": 3, "b": 2}, method, rank=2)
        frozen = {key: tensor.clone() for key, tensor in model.backbone_tensors().items()}
        with torch.no_grad():
            for _, parameter in model.task_parameters("a"):
                parameter.add_(0.02 * torch.randn_like(parameter))
        outputs = [leaf for leaf in leaves(model(*given, task="a")) if leaf.grad_fn is not None]
        sum(leaf.square().mean() for leaf in outputs).backward()  # type: ignore[union-attr]
        none = [n for n, p in model.task_parameters("a") if p.grad is None]
        with torch.no_grad():
            difference = apart(model.fuse("a")(*given), model(*given, task="a"))
            if difference > 1e-5:
                wide, much = copy.deepcopy(model).double(), [x.double() for x in given]
                if apart(wide.fuse("a")(*much), wide(*much, task="a")) < 1e-9:
                    difference = 0.0
    except zoo.ZooError as error:
        return "refused", str(error)
    if none or difference > 1e-5:
        return "silently wrong", f"no gradient for {none[:3]}; fused differs by {difference:.1e}"
    moved = [key for key, tensor in model.backbone_tensors().items() if not torch.equal(tensor, frozen[key])]
    return ("silently wrong", f"moved: {moved[:3]}") if moved else ("works", "×".join(map(str, _shape(given[0]))))


def _shape(given: Any) -> tuple[int, ...]:
    return tuple((given[0] if isinstance(given, list) else given).shape)[-3:]


def attends(name: str) -> bool:
    """Whether a network has attention whose projections can be told."""
    import torch

    from zoo.models.attention import projections

    try:
        with torch.device("meta"):
            return bool(projections(build(name)))
    except Exception:
        return False


def one(name: str, method: str) -> dict[str, Any]:
    """A network in a process of its own."""
    command = [sys.executable, __file__, "--judge", name, "--method", method]
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # noqa: E731
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, preexec_fn=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"model": name, "method": method, "result": "too large", "why": f"{SECONDS} s were not enough"}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            return {"model": name, "method": method, **json.loads(line)}
    last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    large = done.returncode < 0 or any(word in done.stderr for word in ("MemoryError", "allocate memory", "bad_alloc"))
    return {"model": name, "method": method, "result": "too large" if large else "error", "why": last[:300]}


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every model, not the smallest of each family.")
@click.option("--only", default="*", help="Families that match this pattern.")
@click.option("--judge", "judged", hidden=True)
@click.option("--method", default="ftn", hidden=True)
@click.option("--json", "file", type=click.Path(path_type=Path), default=RESULT)
def main(everything: bool, only: str, judged: str | None, method: str, file: Path) -> None:
    warnings.simplefilter("ignore")
    if judged:
        result, why = judge(judged, method)
        click.echo(json.dumps({"result": result, "why": why.splitlines()[0][:300]}))
        return
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    for family, names in families().items():
        done = {row["family"] for row in rows}
        if not fnmatch.fnmatch(family, only) or (family in done and not everything):
            continue
        for name in names if everything else [smallest(names)]:
            for each in ("ftn", "lora") if attends(name) else ("ftn",):
                if any((row["model"], row["method"]) == (name, each) for row in rows):
                    continue
                rows.append({"family": family, **one(name, each)})
                save(file, rows)
                click.echo(" · ".join(rows[-1].values()))
    click.echo(dict(collections.Counter(row["result"] for row in rows)))


if __name__ == "__main__":
    main()
