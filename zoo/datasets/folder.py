"""Images of the user's own: `<root>/<domain>/{train,test}/<class>/*`."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from zoo.datasets.base import Benchmark, Splits
from zoo.datasets.images import ListedImages, require
from zoo.errors import DataError


def class_folders(folder: Path, layout: str) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted; raises DataError, with the layout, where there is none."""
    if not (classes := tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))):
        raise DataError(f"{folder} holds no class folder.\n{layout}")
    return classes


def images_below(folder: Path, classes: tuple[str, ...]) -> ListedImages:
    """The images in `folder/<class>/` and below."""
    return ListedImages(
        classes,
        [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in IMG_EXTENSIONS
        ],
    )


class FolderBenchmark(Benchmark):
    """One domain per folder."""

    name = "folder"
    layout = """Expected layout:
  {root}/
    <domain>/
      train/<class>/*.jpg
      test/<class>/*.jpg      (the same classes as train)"""

    def tasks(self, root: Path | None) -> tuple[str, ...]:
        folder = self.folder(root)
        tasks = tuple(sorted(path.name for path in folder.iterdir() if (path / "train").is_dir()))
        if not tasks:
            raise DataError(f"{folder} holds no domain.\n{self.layout.format(root=folder)}")
        return tasks

    def splits(self, task: str, root: Path | None) -> Splits:
        folder = self.folder(root)
        names = {split: self._classes(folder, task, split) for split in ("train", "test")}
        if names["train"] != names["test"]:
            odd = sorted(set(names["train"]) ^ set(names["test"]))
            raise DataError(
                f"In {folder / task}, these classes stand in one of train and test only: {', '.join(odd)}. "
                "Add what is missing or take the class out of both."
            )
        classes = names["train"]
        train, test = (images_below(folder / task / split, classes) for split in ("train", "test"))
        for split, images in (("train", train), ("test", test)):
            found = {label for _, label in images.items}
            empty = [str(folder / task / split / name) for label, name in enumerate(classes) if label not in found]
            if empty:
                raise DataError(f"No image in {', '.join(empty)}. Add some or remove it.")
        if len(train) < 2:
            raise DataError(f"{folder / task / 'train'} holds one image; batch norms need at least two to train on.")
        return Splits(classes, train, test)

    def _classes(self, folder: Path, task: str, split: str) -> tuple[str, ...]:
        layout = self.layout.format(root=folder)
        return class_folders(require(folder / task / split, layout), layout)
