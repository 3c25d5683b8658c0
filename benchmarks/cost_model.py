"""How well FTN's cost model picks the cheapest route: the routes of every distinct layer, timed in turn.

    python benchmarks/cost_model.py [--channels-last] [--rounds 7] [--only NAME]

Prints, per layer, the milliseconds of a training step by each route and what the model chose; then the time of its
choices over all layers against always taking one route, and the best choice of each. Layers of other networks than
the residual ones are few multiply-adds: they are timed at batch 32 and 96 px.
"""

from collections import defaultdict

import click
import torch
from torch import nn

from zoo.backbones import build
from zoo.increments import get_method
from zoo.increments.cp import CP, ROUTES, cheapest_route
from zoo.increments.pointwise import suits
from zoo.models.layers import AdaptedConv2d
from zoo.models.placement import Placement
from zoo.models.selection import Selection
from zoo.verification.timing import interleaved, medians

CASES = [  # backbone, rank, batch and input size
    ("torchvision/resnet18", 20, 16, 160), ("torchvision/resnet34", 40, 16, 160), ("torchvision/resnet50", 50, 16, 160),
    ("timm/tf_efficientnet_lite0", 8, 32, 96), ("timm/mobilenetv2_100", 8, 32, 96),
]  # fmt: skip


def layer_inputs(name: str, batch: int, size: int) -> dict[tuple[object, ...], tuple[nn.Conv2d, torch.Size, int]]:
    """Each distinct adapted convolution of a network with its input's shape and how often it occurs."""
    model = build(name)
    paths = Placement().find(model, get_method("ftn")).adapted
    found: dict[tuple[object, ...], tuple[nn.Conv2d, torch.Size, int]] = {}

    def note(layer: nn.Conv2d, args: tuple[torch.Tensor]) -> None:
        shape = args[0].shape[-1]
        key = (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.groups, shape)
        found[key] = (layer, args[0].shape, found[key][2] + 1 if key in found else 1)

    for path in paths:
        model.get_submodule(path).register_forward_pre_hook(note)
    with torch.no_grad():
        model.eval()(torch.randn(batch, 3, size, size))
    return found


def time_routes(
    conv: nn.Conv2d, shape: torch.Size, rank: int, rounds: int, layout: torch.memory_format
) -> dict[str, float]:
    """Milliseconds of forward and backward by each route."""
    x = torch.randn(shape).to(memory_format=layout).requires_grad_()
    conv = conv.to(memory_format=layout).requires_grad_(False)

    def run(route: str) -> None:
        layer = AdaptedConv2d.adopt(conv, Selection())
        layer.add("t", CP(conv, rank, route))
        increment = layer.tasks["t"]
        increment(x, layer).sum().backward()

    routes = [route for route in ROUTES if route != "auto" and (route != "thin" or suits(conv, x))]
    seconds = interleaved({route: lambda route=route: run(route) for route in routes}, rounds, warmup=1)
    return {route: 1000 * s for route, s in medians(seconds).items()}


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--channels-last", is_flag=True)
@click.option("--only", default="", help="Networks whose name holds this.")
def main(rounds: int, channels_last: bool, only: str) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for name, rank, batch, size in (case for case in CASES if only in case[0]):
        totals: dict[str, float] = defaultdict(float)
        for (c_in, c_out, k, stride, groups, width), (conv, shape, count) in layer_inputs(name, batch, size).items():
            ms = time_routes(conv, shape, rank, rounds, layout)
            places = batch * (width // stride) ** 2
            chosen = cheapest_route(c_out, c_in // groups, k * k, rank, groups, places, True, "thin" in ms)
            where = f"  {c_in:5d}→{c_out:5d} k{k} s{stride} g{groups} {width:3d}px ×{count}"
            timed = "  ".join(f"{route} {value:6.2f}" for route, value in ms.items())
            click.echo(
                f"{where}  {timed}  chosen {chosen}{'' if ms[chosen] == min(ms.values()) else ' (not the best)'}"
            )
            always = {f"{route} or folded": ms.get(route, ms["folded"]) for route in ROUTES if route != "auto"}
            for key, value in {"model": ms[chosen], "best": min(ms.values()), **always}.items():
                totals[key] += count * value
        click.echo(f"{name} R={rank}: " + "  ".join(f"{key} {value:.0f} ms" for key, value in totals.items()))


if __name__ == "__main__":
    main()
