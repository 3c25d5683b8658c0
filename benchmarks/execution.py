"""What precision, memory layout and torch.compile do to the speed of a training step, and to its result.

    python benchmarks/execution.py --out DIR [--device cuda] [--json FILE]

Speed: one FTN step of resnet34 R=40 at batch 16 and 160 px, all settings in turn in one process. Result: the test
accuracy of `zoo train resnet20-ftn-r8-shapes --task quickdraw` under the same setting, its whole recipe. fp16 needs
a GPU.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from record import save

import zoo
from zoo.cli.tables import show
from zoo.storage.tensors import read
from zoo.training.optimizers import update
from zoo.verification.timing import interleaved, medians, ratio

SETTINGS = {  # the flags of `zoo train`
    "float32, channels-last (default)": [],
    "float32, contiguous": ["--no-channels-last"],
    "float32, compiled": ["--compile"],
    "bf16": ["--precision", "bf16"],
    "fp16": ["--precision", "fp16"],
}
TASK = "quickdraw"


def step(flags: list[str], device: str) -> Callable[[], None]:
    """A full step of resnet34 R=40 under some flags."""
    model = zoo.load("resnet34-ftn-r40-domainnet", task=TASK, weights=None).to(device).train()
    layout = torch.contiguous_format if "--no-channels-last" in flags else torch.channels_last
    model.to(memory_format=layout)
    if "--compile" in flags:
        model.backbone.compile()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(flags[-1] if flags else "")
    precision = torch.autocast(device, kind) if kind else contextlib.nullcontext()
    scaler = torch.amp.GradScaler(device) if kind == torch.float16 else None
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    images = torch.randn(16, 3, 160, 160, device=device).to(memory_format=layout)
    labels = torch.zeros(16, dtype=torch.long, device=device)

    def run() -> None:
        with precision:
            loss = F.cross_entropy(model(images, task=TASK).float(), labels)
        (scaler.scale(loss) if scaler else loss).backward()
        update([optimizer], scaler)

    return run


def accuracy(flags: list[str], out: Path) -> float:
    """Of the whole recipe on one domain, in per cent; trained unless `out` holds it."""
    command = [sys.executable, "-m", "zoo", "train", "resnet20-ftn-r8-shapes", "--task", TASK, "--resume", "--quiet"]
    subprocess.run([*command, "--out", str(out), *flags], check=True, stdout=subprocess.DEVNULL)
    return float(read(out / f"{TASK}.safetensors")[1]["metrics"]["accuracy"])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(out: Path, rounds: int, device: str, json_file: Path | None) -> None:
    settings = {name: flags for name, flags in SETTINGS.items() if device != "cpu" or name != "fp16"}
    torch.manual_seed(0)
    seconds = interleaved({name: step(flags, device) for name, flags in settings.items()}, rounds)
    base = next(iter(settings))
    rows = [
        {
            "setting": name,
            "flags": " ".join(settings[name]) or "–",
            "ms per step": round(1000 * s),
            "ratio": round(ratio(seconds, name, base), 2),
            "accuracy %": round(accuracy(settings[name], out / name.replace(" ", "_")), 2),
        }
        for name, s in medians(seconds).items()
    ]
    show(rows)
    save(json_file, rows, device)


if __name__ == "__main__":
    main()
