"""Clips: files of moving pictures as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.datasets.base import Images
from zoo.errors import DataError, extra


def open_video(path: Path | str, frames: int) -> Tensor:
    """So many frames of a file, evenly spread over its length, uint8 (frames, 3, H, W); a short one repeats frames.

    Raises:
        DataError: the file does not decode, or holds no frame.
        MissingExtraError: PyAV is not installed.
    """
    with extra("video", "Decoding clips"):
        import av
    try:
        with av.open(str(path)) as container:
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except FileNotFoundError:
        raise DataError(f"There is no clip {path}.") from None
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(f"The clip {path} does not decode ({error}). Replace or delete it.") from error
    if not found:
        raise DataError(f"The clip {path} holds no frame. Replace or delete it.")
    chosen = np.linspace(0, len(found) - 1, frames).round().astype(int)
    return torch.from_numpy(np.stack([found[i] for i in chosen])).permute(0, 3, 1, 2)


class ListedVideos(Images):
    """Video files with their labels, decoded as they are taken.

    Attributes:
        items: path and label of each clip.
    """

    def __init__(self, items: Sequence[tuple[Path, int]], frames: int) -> None:
        self.items, self.frames = list(items), frames

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        return open_video(path, self.frames), label
