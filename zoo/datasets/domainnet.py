"""`domainnet`: six domains of 345 classes (Peng et al., ICCV 2019), and `domainnet_joint`: the six as one task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import ConcatDataset

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits
from zoo.datasets.images import ListedImages, below, read_lines
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    <domain>_train.txt, <domain>_test.txt      lines such as: clipart/axe/clipart_014_000001.jpg 14
    <domain>/<class>/*.jpg                     domains: clipart, sketch, painting, quickdraw, infograph, real
  from https://ai.bu.edu/M3SDA (the cleaned version is recommended there)"""


class DomainNet(ListedImages):
    """One split of one domain, by the official lists.

    Some lists have no image of some class (painting_train.txt has no t-shirt): such a class is named after the other
    lists that are there, and keeps its label.

    Args:
        root: the folder that holds the lists.
        split: "train" or "test".
    """

    def __init__(
        self,
        root: Path,
        domain: str,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        layout: str = LAYOUT,
    ) -> None:
        root = Path(root)
        own = _read(root / f"{domain}_{split}.txt", layout)
        lists = sorted(root.glob("*_train.txt")) + sorted(root.glob("*_test.txt"))
        classes = _classes(tuple((file, file.stat().st_mtime_ns) for file in lists), layout)
        super().__init__(classes, [(below(root, path), label) for path, label in own], transform)


@functools.lru_cache(maxsize=4)
def _classes(lists: tuple[tuple[Path, int], ...], layout: str) -> tuple[str, ...]:
    """The names of the classes, from all lists and when they were written; read once, for they have 600,000 lines."""
    names: dict[int, str] = {}
    for file, _ in lists:
        for path, label in _read(file, layout):
            name = path.split("/")[-2] if "/" in path else ""
            if (other := names.setdefault(label, name)) != name:
                raise DataError(f"{file} calls class {label} {name!r}, another list {other!r}.\n{layout}")
    if not names:
        raise DataError(f"The lists {', '.join(str(file) for file, _ in lists)} are empty.\n{layout}")
    return tuple(names.get(label, f"class {label}") for label in range(max(names) + 1))


def _read(file: Path, layout: str) -> list[tuple[str, int]]:
    found = []
    for path, label in read_lines(file, 2, layout):
        if not label.isdigit():
            raise DataError(f"{file}: {label!r} after {path!r} is not the number of a class.\n{layout}")
        found.append((path, int(label)))
    return found


class DomainNetBenchmark(PublishedBenchmark):
    """One task per domain."""

    name, layout = "domainnet", LAYOUT
    published: ClassVar = {
        "the cleaned version": {
            "clipart": Counts(345, 33525, 14604),
            "sketch": Counts(345, 48212, 20916),
            "painting": Counts(345, 50416, 21850),
            "quickdraw": Counts(345, 120750, 51750),
            "infograph": Counts(345, 36023, 15582),
            "real": Counts(345, 120906, 52041),
        },
        "the original version": {
            "clipart": Counts(345, 34019, 14818),
            "sketch": Counts(345, 49115, 21271),
            "painting": Counts(345, 52867, 22892),
            "quickdraw": Counts(345, 120750, 51750),
            "infograph": Counts(345, 37087, 16114),
            "real": Counts(345, 122563, 52764),
        },
    }

    def read(self, task: str, root: Path, layout: str) -> Splits:
        train, test = (DomainNet(root, task, split, layout=layout) for split in ("train", "test"))
        return Splits(train.classes, train, test)


class JointDomainNetBenchmark(PublishedBenchmark):
    """One task, `all`: the images of the six domains together (FTN, Appendix D)."""

    name, layout = "domainnet_joint", LAYOUT
    published: ClassVar = {
        version: {"all": Counts(345, sum(c.train for c in tasks.values()), sum(c.test for c in tasks.values()))}
        for version, tasks in DomainNetBenchmark.published.items()
    }

    def read(self, task: str, root: Path, layout: str) -> Splits:
        domains = DomainNetBenchmark()
        parts = {domain: domains.read(domain, root, layout) for domain in domains.tasks()}
        train: Images = ConcatDataset([part.train for part in parts.values()])
        test: Images = ConcatDataset([part.test for part in parts.values()])
        return Splits(parts["real"].classes, train, test, {domain: part.test for domain, part in parts.items()})
