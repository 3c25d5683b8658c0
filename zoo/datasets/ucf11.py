"""`ucf11`: eleven actions in clips from YouTube, as two tasks (TRMTL, Section 4.2.4)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from zoo.datasets.base import PublishedBenchmark, Splits
from zoo.datasets.images import require
from zoo.datasets.video import ListedVideos
from zoo.errors import DataError

FRAMES = 190  # the paper's input length
TESTED = 20  # the clips of groups above this number are for testing: five of the 25 groups
LAYOUT = """Expected layout:
  {root}/action_youtube_naudio/<action>/v_<action>_<group>/*.avi (or .mpg)
      (UCF11, the UCF YouTube Action Data Set, https://www.crcv.ucf.edu/data/UCF_YouTube_Action.php)"""
ACTIONS = {
    "five": ("basketball", "biking", "diving", "golf_swing", "horse_riding"),
    "six": ("soccer_juggling", "swing", "tennis_swing", "trampoline_jumping", "volleyball_spiking", "walking"),
}


class Ucf11Benchmark(PublishedBenchmark):
    """Five actions and six. The paper states no split: the last five of each action's 25 groups are for testing."""

    name, layout, names = "ucf11", LAYOUT, tuple(ACTIONS)
    suffixes: ClassVar = {".avi", ".mpg"}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        parts: list[list[tuple[Path, int]]] = [[], []]
        for label, action in enumerate(ACTIONS[task]):
            folder = require(root / "action_youtube_naudio" / action, layout)
            for group in sorted(folder.glob("v_*_*")):
                number = group.name.rpartition("_")[2]
                if not number.isdecimal():
                    raise DataError(f"{group} does not end with the number of a group.\n{layout}")
                clips = [(path, label) for path in sorted(group.iterdir()) if path.suffix.lower() in self.suffixes]
                parts[int(number) > TESTED] += clips
        if not all(parts):
            raise DataError(f"{root / 'action_youtube_naudio'} has no clip to train on or none to test on.\n{layout}")
        train, test = (ListedVideos(items, FRAMES) for items in parts)
        return Splits(ACTIONS[task], train, test)
