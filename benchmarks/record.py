"""Keeping what a benchmark measured, with what it was measured on, for benchmarks/reports to tell."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def save(file: Path | None, rows: Any, device: str = "cpu", peers: tuple[str, ...] = ()) -> None:
    """Write rows to a JSON file, if one is wanted, with the versions of the libraries, peers among them."""
    if file is None:
        return
    named = f"{os.cpu_count()}-core {platform.machine()} CPU"
    if device != "cpu":
        import torch

        named = torch.cuda.get_device_name(device)
    libraries = {name: version(name) for name in ("torch", "torchvision", "onnx", *peers)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"device": named, "libraries": libraries, "rows": rows}, indent=1) + "\n")
