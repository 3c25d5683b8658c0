"""Images of the user's own: `<root>/<domain>/{train,test}/<class>/*`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    <domain>/
      train/<class>/*.jpg
      test/<class>/*.jpg      (the same classes as train)"""


class FolderImages(Images):
    """The images below `folder/<class>/`, decoded as they are taken.

    Args:
        skip_unreadable: leave out images that do not decode, each with a warning, instead of raising DataError.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], skip_unreadable: bool = False) -> None:
        self.items = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in IMG_EXTENSIONS
        ]
        if skip_unreadable:
            self.items = [item for item in self.items if _is_readable(item[0])]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.items[index]
        return open_image(path), label


def open_image(path: Path) -> Image.Image:
    """A decoded RGB image; raises DataError, which names the file, where it does not decode."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"There is no image {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"The image {path} does not decode ({error}). Replace or delete it, or go on with --skip-unreadable."
        ) from error


def _is_readable(path: Path) -> bool:
    try:
        open_image(path)
    except DataError as error:
        warnings.warn(f"skipped: {error}", stacklevel=2)
        return False
    return True


class FolderBenchmark(Benchmark):
    """One domain per folder.

    Args:
        name: the benchmark's name.
        subfolder: where below the data root its domains lie.
    """

    def __init__(self, name: str = "folder", subfolder: str = "", skip_unreadable: bool = False) -> None:
        self.name, self.subfolder, self.skip_unreadable = name, subfolder, skip_unreadable

    def tasks(self, root: Path | None) -> tuple[str, ...]:
        folder = self._folder(root)
        tasks = tuple(sorted(path.name for path in folder.iterdir() if (path / "train").is_dir()))
        if not tasks:
            raise DataError(f"{folder} holds no domain.\n{LAYOUT.format(root=folder)}")
        return tasks

    def splits(self, task: str, root: Path | None) -> Splits:
        folder = self._folder(root)
        names = {split: self._classes(folder, task, split) for split in ("train", "test")}
        if names["train"] != names["test"]:
            odd = sorted(set(names["train"]) ^ set(names["test"]))
            raise DataError(
                f"In {folder / task}, these classes stand in one of train and test only: {', '.join(odd)}. "
                "Add what is missing or take the class out of both."
            )
        classes = names["train"]
        train, test = (
            FolderImages(folder / task / split, classes, self.skip_unreadable) for split in ("train", "test")
        )
        for split, images in (("train", train), ("test", test)):
            counts = [0] * len(classes)
            for _, label in images.items:
                counts[label] += 1
            empty = [name for name, count in zip(classes, counts, strict=True) if not count]
            if empty:
                where = folder / task / split
                raise DataError(f"No image in {', '.join(str(where / name) for name in empty)}. Add some or remove it.")
        if len(train) < 2:
            raise DataError(f"{folder / task / 'train'} holds one image; batch norms need at least two to train on.")
        return Splits(classes, train, test)

    def _folder(self, root: Path | None) -> Path:
        if root is None:
            shown = LAYOUT.format(root="DIR/" + self.subfolder if self.subfolder else "DIR")
            raise DataError(
                f"The benchmark {self.name!r} needs its images: name their folder with --data-root DIR.\n{shown}"
            )
        folder = Path(root) / self.subfolder
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}.\n{LAYOUT.format(root=folder)}")
        return folder

    def _classes(self, folder: Path, task: str, split: str) -> tuple[str, ...]:
        where = folder / task / split
        if not where.is_dir():
            raise DataError(f"There is no folder {where}.\n{LAYOUT.format(root=folder)}")
        classes = tuple(sorted(path.name for path in where.iterdir() if path.is_dir()))
        if not classes:
            raise DataError(f"{where} holds no class folder.\n{LAYOUT.format(root=folder)}")
        return classes
