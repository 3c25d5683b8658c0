"""`seasons`: webcams in four seasons (Transient Attributes, Laffont et al. 2014), as the FTN paper takes them.

The paper takes daytime pictures by their scores for each season, and says no more (Appendix F). The rule here: a
picture was taken in daytime if its score for daylight is above that for night, and in the season with the highest score
of the four, the first of equal ones. The pictures of every tenth webcam are the ones to test on.
"""

from __future__ import annotations

import logging
from pathlib import Path

from zoo.datasets.base import PublishedBenchmark, Splits
from zoo.datasets.images import ListedImages, below, require
from zoo.datasets.scenery import CHANNELS
from zoo.errors import DataError
from zoo.storage.pictures import open_image

log = logging.getLogger(__name__)
_told: set[tuple[Path, str]] = set()
LAYOUT = """Expected layout:
  {root}/                                 (http://transattr.cs.brown.edu)
    imageAlignedLD/<webcam>/<name>.jpg    aligned_images.tar
    annotations/annotations.tsv           annotations.tar: a picture in each line, score,confidence of each attribute
    annotations/attributes.txt            the attributes' names, in their order
  docs/seasons.md says more."""
PAPERS = {"summer": 1875, "spring": 1405, "autumn": 1353, "winter": 2566}  # pictures; all to train on
SEASONS = tuple(PAPERS)
DAY, NIGHT = "daylight", "night"
TESTED = 10  # the first of so many webcams, and each that comes so many later, is one to test on


def _columns(root: Path, layout: str) -> dict[str, int]:
    """The column of each attribute that counts here."""
    file = require(root / "annotations" / "attributes.txt", layout)
    names = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    if missing := [name for name in (*SEASONS, DAY, NIGHT) if name not in names]:
        raise DataError(f"{file} does not name the attribute {missing[0]}; such are {', '.join(names[:6])}.")
    return {name: names.index(name) + 1 for name in (*SEASONS, DAY, NIGHT)}


def seasons_of(root: Path, layout: str) -> dict[str, list[str]]:
    """The pictures of each season, as paths below `imageAlignedLD`, in their order.

    Raises:
        DataError: a file is missing, or a line is not as it should be.
    """
    columns = _columns(root, layout)
    file = require(root / "annotations" / "annotations.tsv", layout)
    found: dict[str, list[str]] = {season: [] for season in SEASONS}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, row in ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line.strip()):
        try:
            score = {name: float(row[column].partition(",")[0]) for name, column in columns.items()}
        except (IndexError, ValueError):
            raise DataError(
                f"{file}, line {number}: a picture and {max(columns.values())} scores or more are needed, each of the "
                f"form 0.75,0.5; the line has {len(row)} columns."
            ) from None
        if score[DAY] > score[NIGHT]:
            found[max(SEASONS, key=lambda season: score[season])].append(row[0])
    return {season: sorted(paths) for season, paths in found.items()}


class SeasonsBenchmark(PublishedBenchmark):
    """Four seasons, a task each."""

    name, layout, names = "seasons", LAYOUT, SEASONS

    def read(self, task: str, root: Path, layout: str) -> Splits:
        images = require(root / "imageAlignedLD", layout)
        paths = seasons_of(root, layout)
        webcams = sorted({path.partition("/")[0] for season in paths.values() for path in season})
        tested = set(webcams[::TESTED])
        if len(paths[task]) != PAPERS[task] and (root, task) not in _told:
            _told.add((root, task))
            log.info("%s: %d pictures taken by day, where the FTN paper has %d", task, len(paths[task]), PAPERS[task])
        parts: list[list[tuple[Path, int]]] = [[], []]
        for path in paths[task]:
            parts[path.partition("/")[0] in tested].append((require(below(images, path), layout), 0))
        if min(map(len, parts)) < 2:
            raise DataError(
                f"{root} holds {len(parts[0])} pictures of {task} to train on and {len(parts[1])} to test on, where "
                "two of each are needed at least."
            )
        train, test = (ListedImages(CHANNELS, part, opener=open_image) for part in parts)
        return Splits(CHANNELS, train, test)
