"""Backbones by name: `zoo/NAME@WEIGHTS`, `torchvision/NAME`, `torchvision/NAME@WEIGHTS` and `timm/NAME`, tag included.

`deeplab/` before the name of one of the zoo's or timm's makes it the encoder of a DeepLabv3+; `entry/NAME/TASK` is the
network that another entry, fused for one of its tasks, is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from zoo.backbones.biggan import BigGAN, small
from zoo.backbones.deeplab import deeplab, deeplab_resnet20
from zoo.backbones.imported import IMPORTED, build_imported
from zoo.backbones.resnet26 import ResNet26
from zoo.backbones.resnet_cifar import resnet20
from zoo.backbones.vit import vit_micro
from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.errors import ConfigError, OptionError, UnknownNameError

FUSED = "entry/"  # begins a backbone `entry/NAME/TASK`: the network that the entry NAME, fused for TASK, is
WIDTHS = (0.5, 1.5, 2.0, 2.5)  # of resnet26, beside 1
SMALL = {32: (12, 24), 64: (6, 12)}  # widths of the twins of BigGAN, whose own is 96, by the size of their pictures
OWN: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "resnet26": ResNet26,
    **{f"resnet26x{width}": functools.partial(ResNet26, width) for width in WIDTHS},
    "vit_micro": vit_micro,
    "biggan128": BigGAN,
    **{
        f"biggan{s}x{width / 96:g}": functools.partial(small, s, width)
        for s, widths in SMALL.items()
        for width in widths
    },
    **{name: functools.partial(build_imported, name) for name in IMPORTED},
}


def build(name: str) -> nn.Module:
    """The architecture that a backbone's name means, with fresh weights; downloads nothing.

    Raises:
        UnknownNameError: no library of the zoo's has such an architecture; the nearest names are listed.
    """
    library, _, rest = name.partition("/")
    architecture = rest if library == "timm" else rest.partition("@")[0]  # a tag of timm's names weights alone
    if library == "zoo":
        if architecture not in OWN:
            raise UnknownNameError("backbone", name, [f"zoo/{own}" for own in OWN])
        return OWN[architecture]()
    if library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if architecture not in known:
            raise UnknownNameError("backbone", f"torchvision/{architecture}", [f"torchvision/{n}" for n in known])
        return _main_path(torchvision.models.get_model(architecture, weights=None, **EXTRA.get(architecture, {})))
    if library == "timm":
        import timm

        known = [*timm.list_models(), *timm.list_pretrained()]
        if architecture not in known:
            raise UnknownNameError("backbone", f"timm/{architecture}", [f"timm/{n}" for n in known])
        return timm.create_model(architecture, pretrained=False)
    if library == "deeplab":
        return _deeplab(name, architecture)
    forms = ["zoo/…", "torchvision/…", "timm/…", "deeplab/zoo/…", "deeplab/timm/…"]
    raise UnknownNameError("backbone", name, forms if rest else _libraries_of(name) or forms)


def _libraries_of(architecture: str) -> list[str]:
    """The names under which libraries have an architecture, or else those like it."""
    import difflib

    import timm
    import torchvision

    named = {f"zoo/{name}{'@imagenet' if name in IMPORTED else ''}": name for name in OWN}
    named |= {f"torchvision/{name}": name for name in torchvision.models.list_models(module=torchvision.models)}
    named |= {f"timm/{name}": name for name in [*timm.list_models(), *timm.list_pretrained()]}
    wanted = [architecture, *difflib.get_close_matches(architecture, set(named.values()), n=1)]
    alike = ([full for full, name in named.items() if name == each] for each in wanted)
    return next(filter(None, alike), [])


# torchvision's published weights of these take inputs that the network itself normalises anew.
EXTRA: dict[str, dict[str, bool]] = {
    name: {"transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")
}
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # of torchvision's GoogLeNet and Inception: heads that only training calls


def _main_path(network: nn.Module) -> nn.Module:
    """The network without its auxiliary heads: training here is by the main outputs alone."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False  # type: ignore[assignment]
        for name in AUXILIARY:
            if hasattr(network, name):
                setattr(network, name, None)
    return network


def _deeplab(name: str, encoder: str) -> nn.Module:
    import timm

    if encoder == "zoo/resnet20":
        return deeplab_resnet20()
    library, _, architecture = encoder.partition("/")
    if library == "zoo" and architecture in IMPORTED:
        return deeplab(IMPORTED[architecture].architecture)
    known = timm.list_models()
    if library != "timm" or architecture.partition(".")[0] not in known:
        own = [f"deeplab/zoo/{each}" for each in ("resnet20", *IMPORTED)]
        raise UnknownNameError("backbone", name, [*own, *(f"deeplab/timm/{each}" for each in known)])
    try:
        return deeplab(architecture)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"timm's {architecture} gives no maps of features at strides 4 and 16: {error}") from error


def architecture(backbone: str, registry: Registry) -> nn.Module:
    """The network that a backbone's name means, with fresh weights: a library's, or another entry's."""
    seen = [backbone]
    while backbone.startswith(FUSED):
        backbone = source_of(backbone, registry)[0].backbone
        if backbone in seen:
            raise ConfigError("registry", [f"backbones that are made of each other: {', '.join(seen)}"])
        seen.append(backbone)
    return build(backbone)


def source_of(backbone: str, registry: Registry) -> tuple[Entry, str]:
    """The entry and the task whose fused network a backbone `entry/NAME/TASK` is."""
    name, _, task = backbone.removeprefix(FUSED).partition("/")
    entry = registry.entry(name)
    return entry, entry.known_task(task)
