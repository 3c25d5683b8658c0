"""`pictures`: seven tasks of real images that are as different as can be, from birds to letters.

Each is a part of a public data set, cut down so that all seven fit into 180 MB. docs/pictures.md says of which, with
what terms, and how each folder is made.
"""

from __future__ import annotations

from typing import ClassVar

from zoo.datasets.base import Counts
from zoo.datasets.folder import TaskFolders

LAYOUT = """Expected layout:
  {root}/<task>/{{train,test}}/<class>/*.jpg      tasks: birds, flowers, textures, objects, weather, letters, things
  These are parts of
    birds     https://www.vision.caltech.edu/datasets/cub_200_2011
    flowers   https://www.robots.ox.ac.uk/~vgg/data/flowers/17
    textures  https://www.robots.ox.ac.uk/~vgg/data/dtd
    objects   https://data.caltech.edu/records/mzrjq-6wc02
    weather   https://data.mendeley.com/datasets/4drtyfjtfy
    letters   https://github.com/brendenlake/omniglot
    things    https://www.cs.toronto.edu/~kriz/cifar.html
  docs/pictures.md says which, and how the folders are made."""


class PicturesBenchmark(TaskFolders):
    """Seven folders."""

    name, layout = "pictures", LAYOUT
    published: ClassVar = {
        "docs/pictures.md": {
            "birds": Counts(100, 2999, 2903),
            "flowers": Counts(17, 1088, 272),
            "textures": Counts(10, 960, 240),
            "objects": Counts(101, 3530, 1763),
            "weather": Counts(4, 878, 218),
            "letters": Counts(242, 3388, 1452),
            "things": Counts(10, 5000, 1000),
        }
    }
