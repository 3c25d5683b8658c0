"""`scenery`: pictures of one's own to be made by a generator, a folder for each domain, no classes."""

from __future__ import annotations

from pathlib import Path

from zoo.backbones.generator import Generator
from zoo.datasets.base import Benchmark, Splits
from zoo.datasets.folder import pictures_in
from zoo.datasets.images import ListedImages, require
from zoo.errors import DataError
from zoo.storage.pictures import open_image

CHANNELS = Generator.channels  # of the pictures, in place of classes
LAYOUT = """Expected layout:
  {root}/<domain>/{{train,test}}/*.jpg      or .png, and so on; a domain is a season, a place, a style
  Pictures of one valley in two seasons: https://efrosgans.eecs.berkeley.edu/cyclegan/datasets/summer2winter_yosemite.zip
  docs/seasons.md says more."""


def scenes(folder: Path, layout: str) -> ListedImages:
    """The pictures of a folder.

    Raises:
        DataError: it is not there, holds fewer than two, or holds folders.
    """
    inside = sorted(require(folder, layout).iterdir())
    if folders := [path for path in inside if path.is_dir() and not path.name.startswith(".")]:
        raise DataError(
            f"{folder} holds folders, such as {folders[0].name}: pictures that are to be made have no classes. Put all "
            f"pictures into {folder} itself.\n{layout}"
        )
    found = pictures_in([folder]) if inside else []
    if len(found) < 2:
        raise DataError(f"{folder} holds {len(found)} pictures, where two are needed at least.\n{layout}")
    return ListedImages(CHANNELS, [(path, 0) for path in found], opener=open_image)


class SceneryBenchmark(Benchmark):
    """A task for each domain."""

    name, layout = "scenery", LAYOUT

    def tasks(self, root: Path | None) -> tuple[str, ...]:
        folder = self.folder(root)
        return tuple(sorted(path.name for path in folder.iterdir() if (path / "train").is_dir()))

    def splits(self, task: str, root: Path | None) -> Splits:
        folder = self.folder(root)
        layout = LAYOUT.format(root=folder)
        train, test = (scenes(require(folder / task, layout) / split, layout) for split in ("train", "test"))
        return Splits(CHANNELS, train, test)
