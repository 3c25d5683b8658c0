"""What the package holds of data: the list of its registry, recipes and weights with their SHA-256."""

from __future__ import annotations

from pathlib import Path

from zoo.storage import resources
from zoo.storage.files import sha256

LIST = "SHA256SUMS"  # beside the package's code, in a wheel


def sums() -> str:
    """The list as `sha256sum --check` reads it, with paths as in an installed package, sorted."""
    weights = resources.packaged_weights_dir()
    places = {"registry.yaml": resources.registry_file()}
    places |= {
        f"recipes/{_inside(file, resources.recipes_dir())}": file for file in resources.recipes_dir().rglob("*.yaml")
    }
    places |= {f"weights/{_inside(file, weights)}": file for file in weights.rglob("*.safetensors")}
    return "".join(f"{sha256(file)}  {place}\n" for place, file in sorted(places.items()))


def _inside(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
