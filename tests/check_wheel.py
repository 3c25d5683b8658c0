"""What a wheel of the zoo must hold, and must not: `python tests/check_wheel.py WHEEL`."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(wheel: Path) -> list[str]:
    """What is missing from a wheel or should not be in it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "zoo").rglob("*") if path.suffix == ".py"}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "zoo" / "weights").rglob("*.safetensors")}
    wanted |= {f"zoo/{p.relative_to(ROOT).as_posix()}" for d in ("export", "recipes") for p in (ROOT / d).rglob("*.*")
               if p.suffix in (".py", ".yaml")}  # fmt: skip
    wanted |= {
        "zoo/registry.yaml",
        "zoo/registry.index",
        "zoo/SHA256SUMS",
        "zoo/catalog/papers.yaml",
        "zoo/py.typed",
        "zoo/weights/NOTICE",
    }
    strange = {name for name in names - wanted if ".dist-info/" not in name}
    found = [f"missing {name}" for name in sorted(wanted - names)] + [f"unexpected {name}" for name in sorted(strange)]
    return found or altered(wheel)


def altered(wheel: Path) -> list[str]:
    """What is not as the wheel's own list of hashes says, and the list itself, if it is not the README's."""
    held = zipfile.ZipFile(wheel)
    listed = held.read("zoo/SHA256SUMS")
    lines = [line.split("  ") for line in listed.decode().splitlines()]
    found = [
        f"altered {name}" for digest, name in lines if hashlib.sha256(held.read(f"zoo/{name}")).hexdigest() != digest
    ]
    if hashlib.sha256(listed).hexdigest() not in (ROOT / "README.md").read_text():
        found.append("README.md states another digest of SHA256SUMS")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]} holds what it should")
    sys.exit(bool(found))
