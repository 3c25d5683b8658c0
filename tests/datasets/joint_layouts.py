"""Small folders in exactly the layouts of the benchmarks whose tasks are trained together."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CelebA, Omniglot

from zoo.datasets import cifar, faces, officehome, ucf11

DRAW = np.random.default_rng(0)


def picture(path: Path, height: int = 40, width: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(DRAW.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def mnist(root: Path) -> Path:
    """Twenty training and ten test images, two or one of each digit."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 20), ("t10k", 10)):
        images = DRAW.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


def omniglot(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fifty alphabets of one character in four drawings; the archives' checksums are made to fit."""
    sums = {}
    for part, count in (("images_background", 30), ("images_evaluation", 20)):
        for i in range(count):
            for drawing in range(1, 5):
                path = root / "omniglot-py" / part / f"Alphabet_{i:02d}" / "character01" / f"{i:04d}_{drawing:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(255 * DRAW.integers(0, 2, (105, 105), np.uint8)).save(path)
        archive = root / "omniglot-py" / f"{part}.zip"
        archive.write_bytes(gzip.compress(part.encode(), mtime=0))
        sums[part] = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(Omniglot, "zips_md5", sums)
    return root


def cifar10(root: Path) -> Path:
    """One image of each class in every file, with CIFAR-10's own names."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = sorted(name for classes in cifar.TASKS.values() for name in classes)
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    for file in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = DRAW.integers(0, 256, (10, 3073), np.uint8)
        records[:, 0] = np.arange(10)
        records.tofile(folder / file)
    return root


def video(path: Path, frames: int = 5, height: int = 24, width: int = 32) -> Path:
    """A clip that gets brighter from frame to frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            pixels = np.full((height, width, 3), min(40 * i, 255), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def ucf(root: Path) -> Path:
    """A clip to train on and one to test on for each action."""
    for actions in ucf11.ACTIONS.values():
        for action in actions:
            for group in (3, 21):
                name = f"v_{action}_{group:02d}"
                video(root / "action_youtube_naudio" / action / name / f"{name}_01.avi")
    return root


def office(root: Path) -> Path:
    """65 classes of one image; five of the first."""
    for folder in officehome.FOLDERS.values():
        for label in range(65):
            for number in range(1, 6 if label == 0 else 2):
                path = root / "OfficeHomeDataset_10072016" / folder / f"Thing_{label:02d}" / f"{number:05d}.jpg"
                picture(path)
    return root


def adience_celeba(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight faces and an unknown age in each fold; three faces of CelebA for training, two for testing."""
    head = "user_id\toriginal_image\tface_id\tage\tgender"
    for fold in range(faces.FOLDS):
        lines = [head]
        for i, age in enumerate([*faces.AGES, "None"]):
            image = f"{fold}_{i}.jpg"
            lines.append(f"user@{fold}\t{image}\t{i}\t{age}\tf")
            picture(root / "adience" / "faces" / f"user@{fold}" / f"coarse_tilt_aligned_face.{i}.{image}")
        (root / "adience" / f"fold_{fold}_data.txt").write_text("\n".join(lines) + "\n")
    folder, names = root / "celeba", [f"{i:06d}.jpg" for i in range(1, 6)]
    for name in names:
        picture(folder / "img_align_celeba" / name, 218, 178)
    attributes = " ".join(f"Attribute_{i}" for i in range(40))
    values = [" ".join(str(int(v)) for v in DRAW.choice([-1, 1], 40)) for _ in names]
    lists = {
        "list_eval_partition.txt": [f"{name} {0 if i < 3 else 2}" for i, name in enumerate(names)],
        "identity_CelebA.txt": [f"{name} {i}" for i, name in enumerate(names)],
        "list_bbox_celeba.txt": ["5", "image_id x y w h", *(f"{name} 1 2 3 4" for name in names)],
        "list_landmarks_align_celeba.txt": ["5", "lx ly", *(f"{name} 1 2" for name in names)],
        "list_attr_celeba.txt": ["5", f"{attributes} ", *(f"{n} {v}" for n, v in zip(names, values, strict=True))],
    }
    for file, lines in lists.items():
        (folder / file).write_text("\n".join(lines) + "\n")
    sums = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in lists}
    known = [(key, sums.get(file, md5), file) for key, md5, file in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", known)
    return root


def make(benchmark: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one of these benchmarks."""
    if benchmark == "omniglot_mnist":
        return omniglot(mnist(root), monkeypatch)
    if benchmark == "omniglot5":
        return omniglot(root, monkeypatch)
    if benchmark == "adience_celeba":
        return adience_celeba(root, monkeypatch)
    return {"mnist_odd_even": mnist, "cifar10_3": cifar10, "ucf11": ucf, "officehome": office}[benchmark](root)


BENCHMARKS = (
    "mnist_odd_even",
    "omniglot5",
    "omniglot_mnist",
    "cifar10_3",
    "ucf11",
    "officehome",
    "adience_celeba",
)
