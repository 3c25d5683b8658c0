"""Images from their files: as every viewer shows them, or their pixels as they are stored; and as they lie on white."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.errors import DataError

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels
BANDS = "bands"  # in an image's `info`: what it is made of, where that is not grey or colours
DEEP = 65535  # white of images of 16 bits
OF_ALPHA = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # modes with transparency, and those that they are brought to
AS_DRAWN = ("L", "LA", "RGB", "RGBA", "CMYK")  # modes of 8 bits that stay as they are


def open_image(path: Path | str) -> Image.Image:
    """A decoded RGB image as every viewer shows it: upright, of 8 bits, on white where it is transparent.

    One of other bands than grey and colours has these with it, for networks that take them: see `on_white`.

    Raises:
        DataError: the file does not decode, or its mode has no known range; it is named.
    """
    with _decoding(path), Image.open(path) as image:
        made: Image.Image = on_white(eight_bits(_upright(image), path, image.format)).convert("RGB")
        made.info["source"] = str(path)  # for who is to say what is wrong with it
        return made


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # facts about an image that are damaged say nothing of its orientation
        return image.copy()


def raw_image(path: Path | str, box: Box | None = None) -> Image.Image:
    """A decoded RGB image, its pixels as they are stored and its transparency left aside, cropped to `box`.

    So published benchmarks are read: their boxes and figures rest on these pixels.

    Raises:
        DataError: the file does not decode; it is named.
    """
    with _decoding(path), Image.open(path) as image:
        return (image.crop(box) if box else image).convert("RGB")


@contextlib.contextmanager
def _decoding(path: Path | str) -> Iterator[None]:
    """Turn what Pillow raises into a DataError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"There is no image {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"The image {path} does not decode ({error}). Replace or delete it, or go on with --skip-unreadable."
        ) from error


def eight_bits(image: Any, source: object = "An image", form: str | None = None) -> Any:
    """A PIL image in one of the modes L, LA, RGB, RGBA and CMYK; anything else is returned as it is.

    Args:
        source: what the error names.
        form: the format of its file, which says what is white in some modes.

    Raises:
        DataError: the mode has no known range.
    """
    if not isinstance(image, Image.Image):
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.float64) * (255 / DEEP)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{source} is an image of the mode {image.mode!r}, whose values have no known range. Save it with 8 or 16 "
            "bits per channel, or leave it out with --skip-unreadable."
        )
    if image.mode in OF_ALPHA:
        return image.convert(OF_ALPHA[image.mode])
    if "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode in AS_DRAWN:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """An image of 8 bits as it lies on white, in the mode L or RGB; its own bands, if others, go along in `info`."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("LA", "RGBA"):
        whole = image.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    else:
        seen = image.convert("RGB")
    seen.info[BANDS] = image
    return seen
