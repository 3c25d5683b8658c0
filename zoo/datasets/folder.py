"""Images of the user's own: `<root>/<domain>/{train,test}/<class>/*`, or one domain alone, `<root>/{train,test}/…`."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from zoo.datasets.base import Benchmark, PublishedBenchmark, Splits
from zoo.datasets.images import ListedImages, open_image, raw_image, require
from zoo.errors import DataError, OptionError

log = logging.getLogger(__name__)
NO_PICTURES = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"}  # formats whose files need other programs
_told: set[object] = set()  # folders whose files that are no images have been told of


@functools.cache
def readable_endings() -> frozenset[str]:
    """The endings of the files that Pillow decodes here, such as .jpg."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, form in known if form in Image.OPEN and form not in NO_PICTURES)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is of those that systems and editors put aside, such as .ipynb_checkpoints."""
    return name.startswith(".") or name == "__MACOSX"


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]


def class_folders(folder: Path, layout: str) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted, hidden ones left out; raises DataError where there is none."""
    names = sorted(path.name for path in _folders_in(folder))
    if not names:
        raise DataError(f"{folder} holds no class folder.\n{layout}")
    return tuple(names)


def images_below(
    folder: Path, classes: tuple[str, ...], opener: Callable[..., Image.Image] = raw_image
) -> ListedImages:
    """The images in `folder/<class>/` and below; what is passed over there is told once."""
    items, passed = [], Counter[str]()
    for label, name in enumerate(classes):
        for path in sorted((folder / name).rglob("*")):
            if any(map(is_hidden, path.relative_to(folder).parts)) or path.is_dir():
                continue
            if path.suffix.lower() in readable_endings():
                items.append((path, label))
            else:
                passed[path.suffix.lower() or "without an ending"] += 1
    passed.update(f"{p.suffix.lower()} in no class" for p in folder.iterdir() if p.is_file() and not is_hidden(p.name))
    if passed and folder not in _told:
        _told.add(folder)
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(passed.items()))
        total = len(items) + passed.total()
        log.warning(
            "%s: %d of %d files are passed over, which do not read here: %s", folder, passed.total(), total, kinds
        )
    return ListedImages(classes, items, opener=opener)


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and in place of folders the images in them and below, sorted.

    Raises:
        DataError: a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in readable_endings() and p.is_file()]
        own = [p for p in inside if not any(map(is_hidden, p.relative_to(path).parts))]
        if not own:
            raise DataError(f"{path} holds no image.")
        found += own
    return found


TEST = ("test", "val", "valid", "validation")  # what the folder to test on may be called; the first that there is


class FolderBenchmark(Benchmark):
    """One domain per folder; or the one domain that the folder itself is, called as the folder is.

    Args:
        test_share: of the images of each class to test on, in domains that have no split of their own.

    Raises:
        OptionError: the share is not between 0 and 1.
    """

    name = "folder"
    layout = """Expected layout:
  {root}/
    <domain>/
      train/<class>/*.jpg
      test/<class>/*.jpg      (the same classes as train; val and valid are taken for test where there is none)
  or the folders train and test of one domain alone.
Where there is nothing to test on, --test-share 0.2 (in Python test_share=0.2) parts what there is:
  {root}/<domain>/<class>/*.jpg, or {root}/<class>/*.jpg."""

    def __init__(self, test_share: float | None = None) -> None:
        if test_share is not None and not 0 < test_share < 1:
            raise OptionError(f"A share of the images to test on is between 0 and 1, not {test_share}.")
        self.test_share = test_share

    def tasks(self, root: Path | None) -> tuple[str, ...]:
        folder = self.folder(root)
        if self._is_domain(folder):
            return (folder.resolve().name,)
        inside = sorted(path.name for path in _folders_in(folder))
        tasks = tuple(name for name in inside if (folder / name / "train").is_dir() or self._is_domain(folder / name))
        if not tasks:
            raise DataError(f"{folder} holds no domain.\n{self.layout.format(root=folder)}")
        return tasks

    def splits(self, task: str, root: Path | None) -> Splits:
        folder = self.folder(root)
        # The one domain may have been called otherwise when it was trained on
        own = folder if self._is_domain(folder) else folder / task
        layout = self.layout.format(root=folder)
        if self.test_share is None or _is_split(own):
            return read_domain(own, layout)
        return parted_domain(own, self.test_share, layout)

    def _is_domain(self, folder: Path) -> bool:
        """Whether a folder is itself what others hold one for each domain."""
        return _is_split(folder) or (self.test_share is not None and _is_whole(folder))


def _is_split(folder: Path) -> bool:
    """Whether a folder holds images to train on, and others to test on."""
    return (folder / "train").is_dir() and any((folder / name).is_dir() for name in TEST)


def _holds_images(folder: Path) -> bool:
    """Whether a folder holds images itself, and not only below."""
    return any(path.suffix.lower() in readable_endings() and not is_hidden(path.name) for path in folder.iterdir())


def _whole(folder: Path) -> Path:
    """Where a domain without a split has its class folders: in itself, or in a folder called train."""
    train = folder / "train"
    return train if train.is_dir() and not _holds_images(train) else folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds the images of classes, or such a folder called train, and none to test on.

    Raises:
        DataError: some folders in it can only be classes, and others only domains.
    """
    if _whole(folder) != folder:
        return not _is_split(folder)
    inside = _folders_in(folder)
    classes = [each for each in inside if _holds_images(each)]
    domains = [each for each in inside if _is_split(each) or any(map(_holds_images, _folders_in(each)))]
    if classes and domains:
        raise DataError(
            f"{classes[0]} holds images and {domains[0]} folders of images, so that {folder} is neither one domain nor "
            "several. Move what is in the wrong place."
        )
    return bool(classes)


def parted_domain(folder: Path, share: float, layout: str) -> Splits:
    """A domain without a split: of each class, a share of the images to test on, and the others to train on.

    Which ones depends on nothing but their names: those whose SHA-256 comes first, rounded to whole images, at least
    one. So a folder is parted in the same way wherever it lies, and images added later move few of the others.

    Raises:
        DataError: a class has too few images for both.
    """
    whole = _whole(require(folder, layout))
    classes = class_folders(whole, layout)
    by_class: list[list[Path]] = [[] for _ in classes]
    for path, label in images_below(whole, classes).items:
        by_class[label].append(path)
    train, test = [], []
    for label, paths in enumerate(by_class):
        tested = max(1, round(share * len(paths)))
        if tested >= len(paths):
            raise DataError(
                f"{whole / classes[label]} holds {len(paths)} images; to test on {share:.0%} and train on the others "
                "takes more."
            )
        ordered = sorted(paths, key=lambda path: _sha256(path.relative_to(whole).as_posix()))
        test += [(path, label) for path in sorted(ordered[:tested])]
        train += [(path, label) for path in sorted(ordered[tested:])]
    if len(train) < 2:
        raise DataError(f"{whole} leaves one image to train on; batch norms need at least two.")
    if (whole, "parted") not in _told:
        _told.add((whole, "parted"))
        log.info("%s: %d of its %d images are the ones to test on", whole, len(test), len(train) + len(test))
    train_images, test_images = (ListedImages(classes, items, opener=open_image) for items in (train, test))
    return Splits(classes, train_images, test_images)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_domain(folder: Path, layout: str) -> Splits:
    """The classes and images of `folder/{train,test}/<class>/*`; raises DataError where that is not as it should be."""
    place = {
        "train": folder / "train",
        "test": next((p for p in map(folder.joinpath, TEST) if p.is_dir()), folder / "test"),
    }
    if place["test"].name != "test" and place["test"] not in _told:
        _told.add(place["test"])
        log.info("%s: its images are the ones to test on", place["test"])
    names = {split: class_folders(require(path, layout), layout) for split, path in place.items()}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise DataError(
            f"In {folder}, these classes stand in one of train and {place['test'].name} only: {', '.join(odd)}. "
            "Add what is missing or take the class out of both."
        )
    classes = names["train"]
    train, test = (images_below(path, classes, open_image) for path in place.values())
    for split, images in (("train", train), ("test", test)):
        found = {label for _, label in images.items}
        empty = [str(place[split] / name) for label, name in enumerate(classes) if label not in found]
        if empty:
            raise DataError(f"No image in {', '.join(empty)}. Add some or remove it.")
    if len(train) < 2:
        raise DataError(f"{folder / 'train'} holds one image; batch norms need at least two to train on.")
    return Splits(classes, train, test)


class TaskFolders(PublishedBenchmark):
    """A published benchmark with a folder of that form for each task."""

    def read(self, task: str, root: Path, layout: str) -> Splits:
        return read_domain(require(root / task, layout), layout)
