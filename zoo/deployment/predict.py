"""What classifiers say of images of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.backbones.generator import Generator
from zoo.catalog.registry import Registry
from zoo.catalog.task import GENERATION, Preprocessing, Task
from zoo.datasets import open_image
from zoo.datasets.video import open_video
from zoo.errors import DataError, OptionError, WeightsError
from zoo.kinds import get_kind
from zoo.kinds.base import LabelKind, main_output
from zoo.loader import pretrained_network
from zoo.models.multitask import MultiTaskModel


def classify(
    model: MultiTaskModel, task: str, images: Sequence[Path], top: int = 3, skip_unreadable: bool = False
) -> list[dict[str, Any]]:
    """The most probable classes of each image, most probable first, with their probabilities.

    Raises:
        DataError: an image does not decode, unless `skip_unreadable`; then it stands in the result as such.
    """
    known = model.task(task)
    if not isinstance(get_kind(known.kind), LabelKind):
        made = (
            "makes pictures: use `zoo generate`" if known.kind == GENERATION else "answers with maps, not with labels"
        )
        raise OptionError(f"{task} {made}.")
    return _classified(model.answering(task), known, images, top, skip_unreadable)


def classify_imagenet(
    backbone: str, registry: Registry, images: Sequence[Path], top: int = 3, skip_unreadable: bool = False
) -> list[dict[str, Any]]:
    """The same of a pre-trained backbone by name, with the classifier that it came with and ImageNet's classes.

    Raises:
        OptionError: its classifier has other classes than ImageNet's thousand.
    """
    from timm.data.imagenet_info import ImageNetInfo

    try:
        network = pretrained_network(backbone, registry).eval()
    except WeightsError as error:  # those of a classifier of other classes do not fit
        raise _other_classes(backbone, registry) or error from None
    if isinstance(network, Generator):
        raise _other_classes(backbone, registry) or OptionError(f"{backbone} makes pictures, and takes none.")
    names = list(ImageNetInfo().label_descriptions())
    classes = tuple(f"{name.partition(',')[0]} ({number})" for number, name in enumerate(names))
    known = Task("imagenet", classes, Preprocessing.of(network))
    with torch.no_grad():
        outputs = main_output(network(torch.zeros(1, *known.preprocessing.input_size))).shape[-1]
    if outputs != len(classes):
        raise OptionError(
            f"{backbone} has {outputs} classes, not ImageNet's {len(classes)}; their names are not known."
        )
    return _classified(network, known, images, top, skip_unreadable)


def _other_classes(backbone: str, registry: Registry) -> OptionError | None:
    """What is wrong with asking a backbone of the zoo's own making for ImageNet's classes; None of another."""
    own = registry.backbone(backbone)
    if own is None:
        return None
    advice = f"Ask an entry on it: {entries_on(backbone, registry)}."
    return OptionError(f"{backbone} was trained on {own.benchmark}, and not on ImageNet. {advice}")


def entries_on(backbone: str, registry: Registry) -> str:
    """The entries with weights that stand on a backbone, the first of them, in words."""
    names = [entry.name for entry in registry.entries() if entry.backbone == backbone and entry.weights]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none has weights yet"


def _classified(
    network: Callable[[Tensor], Any], task: Task, images: Sequence[Path], top: int, skip_unreadable: bool
) -> list[dict[str, Any]]:
    """A row for each image."""
    transform, frames, kind = task.preprocessing.transform(), task.preprocessing.frames, get_kind(task.kind)
    assert isinstance(kind, LabelKind)
    rows: list[dict[str, Any]] = []
    for path in images:
        try:
            inputs = transform(open_video(path, frames) if frames else open_image(path))[None]
        except DataError:
            if not skip_unreadable:
                raise
            rows.append({"image": str(path), "classes": "does not decode"})
            continue
        with torch.no_grad():
            best = kind.probabilities(main_output(network(inputs))[0]).topk(min(top, len(task.classes)))
        guesses = zip(best.values, best.indices.tolist(), strict=True)
        rows.append({"image": str(path), "classes": {task.classes[i]: round(float(p), 6) for p, i in guesses}})
    return rows
