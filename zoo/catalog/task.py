"""What the zoo knows of a task: its kind, its classes, and how its images are prepared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.catalog.schema import parse
from zoo.errors import DataError, OptionError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
SHARED_NAME = "shared"  # what the file of what tasks share is called, beside theirs
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Metric:
    """What says how well a task is done."""

    name: str
    unit: str = "%"
    higher_is_better: bool = True

    def rounded(self, value: float) -> float:
        """A figure to as many places as are told and kept: two of a percentage, four of anything else."""
        return round(value, 2 if self.unit == "%" else 4)

    def text(self, value: float) -> str:
        """A figure with its unit, to be read."""
        return f"{value:.2f} %" if self.unit == "%" else f"{value:.4g} {self.unit}"

    def worse(self, value: float, than: float) -> float:
        """By how much a figure is worse than another: in points, or in per cent of an error; negative if better."""
        lost = than - value if self.higher_is_better else value - than
        return lost if self.unit == "%" else 100 * lost / than if than else lost

    def told(self, value: float, images: int) -> str:
        """A figure on so many images, such as "78.3 % (60 images, ± 10)": a share of right answers with what it leaves
        open.
        """
        half = self.half_interval(value, images)
        if half is None:
            return f"{self.text(value)} ({images:,} images)"
        return f"{value:.1f} % ({images:,} images, ± {half:.{0 if half >= 1 else 1}f})"

    def half_interval(self, value: float, images: int) -> float | None:
        """Half of the 95 % interval of an accuracy on so many images, in points, by Agresti and Coull (The American
        Statistician, 1998); None for other metrics.
        """
        if self.name != "accuracy":
            return None
        share = (value / 100 * images + 2) / (images + 4)
        return float(196 * (share * (1 - share) / (images + 4)) ** 0.5)


CLASSIFICATION, ATTRIBUTES, GENERATION = "classification", "attributes", "generation"
METRICS = {  # of each kind of task; `zoo.kinds` has the rest
    CLASSIFICATION: Metric("accuracy"),
    ATTRIBUTES: Metric("accuracy"),
    "segmentation": Metric("mIoU"),
    "edges": Metric("odsF"),
    "depth": Metric("RMSE", "m", higher_is_better=False),
    "normals": Metric("mean angle", "°", higher_is_better=False),
    GENERATION: Metric("PSNR", "dB"),
}


CHANNELS = {"edges": 1, "depth": 1, "normals": 3, GENERATION: 3}  # of the output of a kind that has no classes
LARGEST_SIDE = 32_768  # pixels of a network's input
MOST_CLASSES = 1_000_000
MOST = {"segmentation": 255}  # of a kind that has fewer; that number itself is the label of what is unknown


def has_labels(kind: str) -> bool:
    """Whether a task of this kind answers an image with labels of the whole."""
    return kind in (CLASSIFICATION, ATTRIBUTES)


def is_dense(kind: str) -> bool:
    """Whether a task of this kind answers an image with maps."""
    return not has_labels(kind) and kind != GENERATION


def check_outputs(kind: str, outputs: int) -> None:
    """Raise OptionError where a kind of task is not known, or cannot have so many outputs."""
    if kind not in METRICS:
        raise OptionError(f"is of the unknown kind {kind!r}; known: {', '.join(METRICS)}")
    most = MOST.get(kind, MOST_CLASSES)
    if not 1 <= outputs <= most or outputs != CHANNELS.get(kind, outputs):
        wanted = CHANNELS.get(kind) or f"1 to {most:,}"
        raise OptionError(f"has {outputs} outputs, where the kind {kind!r} has {wanted}")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input: resize, centre crop, scale to [0, 1], normalise."""

    size: int = 224  # height of the input, in pixels, and its width too, unless `width` says otherwise
    resize: int | None = 256  # shorter side before the crop, in pixels; None: resize straight to the input's size
    mean: tuple[float, ...] = IMAGENET_MEAN  # per channel, of values in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    width: int | None = None  # of the input, in pixels
    frames: int | None = None  # of the input, where it is a clip
    interpolation: str = "bilinear"  # of the resize, one of INTERPOLATIONS

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or (self.resize is not None and self.resize < max(self.shape)):
            raise OptionError(
                f"Preprocessing needs 1 <= size <= resize, not size {self.size}, resize {self.resize}."
                if self.width is None
                else f"Preprocessing needs 1 <= size, width <= resize, not {self.shape} and {self.resize}."
            )
        if max(*self.shape, self.resize or 0) > LARGEST_SIDE:
            raise OptionError(f"Preprocessing makes images of at most {LARGEST_SIDE:,} pixels a side.")
        if self.frames is not None and self.frames < 1:
            raise OptionError(f"Preprocessing needs frames >= 1, not {self.frames}.")
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise OptionError(
                "Preprocessing needs mean and std of 1 or 3 channels, or of as many as the network takes, std above 0; "
                f"got {self.mean}, {self.std}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise OptionError(
                f"The interpolation must be one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}."
            )

    @classmethod
    def from_data(cls, data: Any) -> Preprocessing:
        """What `dataclasses.asdict` made, after a passage through JSON; raises ValueError for anything else."""
        problems: list[str] = []
        made = parse(cls, data, problems, "preprocessing")
        if made is None:
            raise ValueError("; ".join(problems))
        return made

    @classmethod
    def of(cls, network: Any) -> Preprocessing:
        """What timm says that a network was trained on; ImageNet's at 224 pixels for others.

        The number of channels is that of the network's first convolution. Where it is another than that of the mean
        and the deviation, one channel takes their average, and more take them in turn, as timm repeats the weights.
        """
        config = getattr(network, "pretrained_cfg", None) or {}
        channels = _channels_of(network, config)
        if not {"input_size", "mean", "std"} <= set(config):
            return cls(mean=_for_channels(IMAGENET_MEAN, channels), std=_for_channels(IMAGENET_STD, channels))
        size = int(config["input_size"][-1])
        resize = int(size / float(config.get("crop_pct") or 1))
        mean, std = (_for_channels(tuple(config[key]), channels) for key in ("mean", "std"))
        stated = config.get("interpolation", "bilinear")
        return cls(size, resize, mean, std, interpolation=stated if stated in INTERPOLATIONS else "bicubic")

    def words(self) -> str:
        """What is done to an image, for people."""
        shape = "×".join(map(str, self.shape))
        how = f"resized to {shape} pixels" if self.resize is None else f"shorter side to {self.resize} pixels"
        crop = "" if self.resize is None else f", centre crop of {shape}"
        numbers = (", ".join(f"{value:g}" for value in each) for each in (self.mean, self.std))
        return f"{how}{crop}, {self.interpolation}, mean ({next(numbers)}), deviation ({next(numbers)})"

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of one input."""
        return self.size, self.width or self.size

    @property
    def input_size(self) -> tuple[int, ...]:
        """(channels, height, width) of one input; of a clip (frames, channels, height, width)."""
        return *((self.frames,) if self.frames else ()), self.channels, *self.shape

    def transform(self, augmentations: Sequence[Callable[..., Any]] | None = None) -> Callable[..., Any]:
        """A torchvision transform from a PIL image or a uint8 tensor (C, H, W) to a float tensor of the input's size.

        A clip is a uint8 tensor (T, C, H, W), whose frames are all treated alike.

        It takes a target beside the image, if there is one, and does the same to it where it is a map.

        Args:
            augmentations: training transforms to use in place of the resize and the crop.
        """
        import torch
        from torchvision.transforms import v2

        steps: list[Callable[..., Any]] = [Bands(self.channels)]
        mode = v2.InterpolationMode(self.interpolation)
        if augmentations is not None:
            steps += augmentations
        elif self.resize is None:
            steps += [v2.Resize(self.shape, mode, antialias=True)]
        else:
            steps += [v2.Resize(self.resize, mode, antialias=True), v2.CenterCrop(self.shape)]
        steps += [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(self.mean), list(self.std)),
            v2.ToPureTensor(),
        ]
        composed: Callable[..., Any] = v2.Compose(steps)
        return composed


def _channels_of(network: Any, config: Mapping[str, Any]) -> int:
    """The channels of a network's input: those of the convolution that timm names, else of the first one; else 3.

    Where the first one registered takes many, and another one three, that is taken for the stem.
    """
    if hasattr(network, "latent_size"):  # a generator, which takes no image: its pictures'
        return 3
    modules = dict(network.named_modules()) if hasattr(network, "named_modules") else {}
    stated = config.get("first_conv") or ()
    layers: list[Any] = [modules.get(path) for path in ((stated,) if isinstance(stated, str) else stated)]
    found = [m.in_channels for m in layers or modules.values() if hasattr(m, "in_channels") and hasattr(m, "stride")]
    return int(3 if not found or 3 in found else found[0])


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == len(values):
        return values
    return (sum(values) / len(values),) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))


class Bands:
    """From an image (PIL, or a uint8 tensor (C, H, W) or (T, C, H, W)) to a tensor of so many channels.

    One channel is the image in grey, three are its colours; both lie on white where the image is transparent. Any
    other number takes the image's own bands, the transparency of RGBA among them; they have to be as many.

    Raises:
        DataError: they are not.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Any, *targets: Any) -> Any:
        from torchvision.transforms import v2

        from zoo.storage.pictures import BANDS, eight_bits, on_white

        source = getattr(image, "info", {}).get("source", "An image")
        image = eight_bits(image, source, getattr(image, "format", None))
        if hasattr(image, "getbands"):  # an image of Pillow's
            image = on_white(image) if self.channels in (1, 3) else image.info.get(BANDS, image)
        made = v2.ToImage()(image)
        found = made.shape[-3]
        if self.channels in (1, 3) and found in (1, 3):
            made = v2.RGB()(made) if self.channels == 3 else v2.Grayscale()(made)
        elif found != self.channels:
            raise DataError(f"{source} has {found} bands; the network takes {self.channels}.")
        return (made, *targets) if targets else made

    def __repr__(self) -> str:
        return f"Bands({self.channels})"


def can_name_task(name: str) -> bool:
    """Whether a task may be called so: files and parameters are called by its name.

    A model, which has torch, refuses the names of its modules' methods beside these.
    """
    return name != SHARED_NAME and NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Task:
    """One task of a model: its name, its classes in the order of the outputs, its preprocessing and its kind."""

    name: str
    classes: tuple[str, ...]  # for a kind without classes, what the channels of its output are
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    kind: str = CLASSIFICATION  # one of METRICS

    @property
    def metric(self) -> Metric:
        """What says how well the task is done."""
        return METRICS[self.kind]

    @classmethod
    def of(
        cls,
        name: str,
        classes: int | Sequence[str],
        preprocessing: Preprocessing | None = None,
        kind: str = CLASSIFICATION,
    ) -> Task:
        """A task from a number of classes or from their names.

        Raises:
            OptionError: fewer than one class, two of one name, or a kind that is not known or has another number.
        """
        classes = classes if isinstance(classes, int) else tuple(classes)
        try:
            check_outputs(kind, classes if isinstance(classes, int) else len(classes))
        except OptionError as error:
            raise OptionError(f"The task {name!r} {error}.") from None
        names = tuple(map(str, range(classes)) if isinstance(classes, int) else classes)
        if len(set(names)) != len(names):
            raise OptionError(
                f"The task {name!r} names a class twice: {sorted({n for n in names if names.count(n) > 1})}."
            )
        return cls(name, names, preprocessing or Preprocessing(), kind)
