"""`emoji`: one set of 15 classes drawn by five hands, as DomainNet's domains share their classes.

The images come in four npm packages; `build` makes the benchmark's folder of their archives. The classes are groups of
Unicode's emoji. The split is by emoji and so the same in every style: of each class, in the order of code points,
every fifth is for testing. In each style, an image that equals another one is left out.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from zoo.datasets.base import Counts
from zoo.datasets.folder import TaskFolders
from zoo.errors import DataError, extra
from zoo.storage.files import atomic_path
from zoo.storage.pictures import on_white

SIZE = 96  # pixels, of the images that are built
QUALITY = 90  # of JPEG
EVERY = 5  # the first of so many emoji of a class, in the order of their code points, is for testing
JOINED = "200D"  # joins several emoji to one; such are left out, for most are another one in other clothes
GROUPS = {  # Unicode's groups and subgroups, as emoji-datasource writes them; "" stands for all that are not named
    "activity": {"Activities": [""]},
    "animal": {
        "Animals & Nature": [
            "animal-amphibian", "animal-bird", "animal-bug", "animal-mammal", "animal-marine", "animal-reptile",
        ],
        "Smileys & Emotion": ["cat-face", "monkey-face"],
    },
    "clock": {"Travel & Places": ["time"]},
    "clothing": {"Objects": ["clothing"]},
    "face": {
        "Smileys & Emotion": [
            "face-affection", "face-concerned", "face-costume", "face-glasses", "face-hand", "face-hat",
            "face-negative", "face-neutral-skeptical", "face-sleepy", "face-smiling", "face-tongue", "face-unwell",
        ]
    },
    "flag": {"Flags": [""]},
    "food": {"Food & Drink": [""]},
    "hand": {
        "People & Body": [
            "body-parts", "hand-fingers-closed", "hand-fingers-open", "hand-fingers-partial", "hand-prop",
            "hand-single-finger", "hands",
        ]
    },
    "object": {"Objects": [""]},
    "person": {"People & Body": [""]},
    "place": {
        "Travel & Places": ["place-building", "place-geographic", "place-map", "place-other", "place-religious"]
    },
    "plant": {"Animals & Nature": ["plant-flower", "plant-other"]},
    "symbol": {"Symbols": [""]},
    "vehicle": {"Travel & Places": ["transport-air", "transport-ground", "transport-water"]},
    "weather": {"Travel & Places": ["sky & weather"]},
}  # fmt: skip
NO_CLASS = {("Symbols", "gender")}
LEFT_OUT = {("openmoji_line", "large_green_circle")}  # an empty circle, and as such a test image of openmoji
CLASS_OF = {(group, sub): name for name, groups in GROUPS.items() for group, subs in groups.items() for sub in subs}


@dataclass(frozen=True)
class Style:
    """Where a style's images lie: an npm package's archive, and the file in it of an emoji."""

    archive: str
    file: Callable[[dict[str, Any]], str]


def _code(emoji: dict[str, Any]) -> str:
    """Its code points; the mark that asks for a coloured picture is left out, as OpenMoji does, but in sequences."""
    code = str(emoji["unified"])
    return code.removesuffix("-FE0F") if code.count("-") == 1 else code


STYLES = {
    "noto": Style("emoji-datasource-google-16.0.0.tgz", lambda e: f"img/google/64/{e['image']}"),
    "twemoji": Style("emoji-datasource-twitter-16.0.0.tgz", lambda e: f"img/twitter/64/{e['image']}"),
    "openmoji": Style("openmoji-17.0.0.tgz", lambda e: f"color/svg/{_code(e)}.svg"),
    "openmoji_line": Style("openmoji-17.0.0.tgz", lambda e: f"black/svg/{_code(e)}.svg"),
    "fluent_3d": Style("lobehub-fluent-emoji-3d-1.1.0.tgz", lambda e: f"assets/{e['unified'].lower()}.webp"),
}
AGAIN = "Fetch it again with `npm pack`."
LAYOUT = f"""Expected layout:
  {{root}}/<style>/{{{{train,test}}}}/<class>/*.jpg      styles: {", ".join(STYLES)}
  `zoo data build emoji --from ARCHIVES -o {{root}}` makes it of the archives that `npm pack` fetches from https://www.npmjs.com:
  emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0 @lobehub/fluent-emoji-3d@1.1.0"""


class EmojiBenchmark(TaskFolders):
    """One task per style."""

    name, layout = "emoji", LAYOUT
    published: ClassVar = {
        "docs/pictures.md": {
            "noto": Counts(15, 1279, 329),
            "twemoji": Counts(15, 1281, 329),
            "openmoji": Counts(15, 1281, 329),
            "openmoji_line": Counts(15, 1068, 274),
            "fluent_3d": Counts(15, 1266, 326),
        }
    }


def build(archives: Path, out: Path) -> Iterator[tuple[str, int]]:
    """Make the benchmark's folder of the npm packages' archives; each style and its number of images, as it is done.

    Raises:
        DataError: an archive is not there, is damaged, or holds something else.
    """
    first = _Archive(archives / STYLES["noto"].archive)
    try:
        # Of a style's equal images the one for training is kept, and then the one whose name comes first.
        places = sorted(
            _places(json.loads(first.read("emoji.json"))),
            key=lambda place: (place[0] != "train", place[1], place[2]["short_name"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{first.path}: emoji.json is no list of emoji ({error!r}). {AGAIN}") from error
    for style, source in STYLES.items():
        archive, seen, count = _Archive(archives / source.archive), set(), 0
        for split, name, emoji in places:
            image = archive.image(source.file(emoji))
            if image is None or image in seen:
                continue
            seen.add(image)
            if (style, emoji["short_name"]) in LEFT_OUT:
                continue
            with atomic_path(out / style / split / name / f"{emoji['short_name']}.jpg") as file:
                file.write_bytes(image)
            count += 1
        if not count:
            raise DataError(f"{archive.path} holds no image of {style}. {AGAIN}")
        yield style, count


def _places(listed: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of each emoji its split, its class and what the packages say of it."""
    classes = defaultdict(list)
    for emoji in sorted(listed, key=lambda each: str(each["unified"])):
        group, sub = emoji["category"], emoji["subcategory"]
        name = None if (group, sub) in NO_CLASS else CLASS_OF.get((group, sub)) or CLASS_OF.get((group, ""))
        if name and JOINED not in emoji["unified"]:
            classes[name].append(emoji)
    for name, members in classes.items():
        for number, emoji in enumerate(members):
            yield "train" if number % EVERY else "test", name, emoji


class _Archive:
    """An npm package's archive, read into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"There is no {path}.\n{LAYOUT.format(root='DIR')}")
        try:
            with tarfile.open(path) as archive:
                files = [member for member in archive if member.isfile()]
                self.files = {m.name.partition("/")[2]: archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{path} cannot be read: {error}. {AGAIN}") from error

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise DataError(f"{self.path} holds no {name}; it should be the archive that `npm pack` fetches.")
        return self.files[name]

    def image(self, name: str) -> bytes | None:
        """One of its images as a JPEG of the benchmark's size, on white; None where it has none of that name."""
        if name not in self.files:
            return None
        data = self.files[name]
        if name.endswith(".svg"):
            with extra("emoji", "Drawing OpenMoji's SVG files"):
                try:
                    import cairosvg
                except OSError as error:  # pip brings the binding alone
                    raise ImportError(str(error), name="libcairo, the system's library") from error
        try:
            if name.endswith(".svg"):
                data = cairosvg.svg2png(bytestring=data, output_width=SIZE, output_height=SIZE)
            with Image.open(io.BytesIO(data)) as image:
                made = on_white(image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)).convert("RGB")
        except Exception as error:  # cairosvg and Pillow raise classes of many kinds for a damaged file
            raise DataError(f"{self.path}: {name} does not decode ({error!r}). {AGAIN}") from error
        buffer = io.BytesIO()
        made.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return buffer.getvalue()
