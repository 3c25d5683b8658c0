"""How well FTN's cost model picks the cheaper route: both routes of every distinct layer, timed in turn.

    python benchmarks/cost_model.py [--channels-last] [--rounds 7]

Prints, per layer, the milliseconds of a training step by either route and what the model chose; then the time of
its choices over all layers against always folding, always factoring, and the best choice of each.
"""

import click
import torch
import torchvision
from torch import nn

from zoo.increments import get_method
from zoo.increments.cp import CP, cheaper_route
from zoo.models.layers import AdaptedConv2d
from zoo.models.placement import Placement
from zoo.models.selection import Selection
from zoo.verification.timing import interleaved, medians

CASES = [("resnet18", 20), ("resnet34", 40), ("resnet50", 50)]


def layer_inputs(name: str, batch: int, size: int) -> dict[tuple[object, ...], tuple[nn.Conv2d, torch.Size, int]]:
    """Each distinct adapted convolution of a network with its input's shape and how often it occurs."""
    model = getattr(torchvision.models, name)()
    paths = Placement().find(model, get_method("ftn")).adapted
    found: dict[tuple[object, ...], tuple[nn.Conv2d, torch.Size, int]] = {}

    def note(layer: nn.Conv2d, args: tuple[torch.Tensor]) -> None:
        key = (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], args[0].shape[-1])
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

    seconds = interleaved({r: lambda r=r: run(r) for r in ("folded", "factored")}, rounds, warmup=1)
    return {route: 1000 * s for route, s in medians(seconds).items()}


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--size", default=160, show_default=True)
@click.option("--channels-last", is_flag=True)
def main(rounds: int, batch: int, size: int, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for name, rank in CASES:
        totals = dict.fromkeys(("model", "folded", "factored", "best"), 0.0)
        for (c_in, c_out, k, stride, width), (conv, shape, count) in layer_inputs(name, batch, size).items():
            ms = time_routes(conv, shape, rank, rounds, layout)
            chosen = cheaper_route(c_out, c_in, k * k, rank, 1, batch * (width // stride) ** 2, training=True)
            where = f"  {c_in:5d}→{c_out:5d} k{k} s{stride} {width:3d}px ×{count}"
            timed = f"folded {ms['folded']:6.2f}  factored {ms['factored']:6.2f}"
            click.echo(f"{where}  {timed}  ratio {ms['folded'] / ms['factored']:.2f}  chosen {chosen}")
            for key, value in {**ms, "model": ms[chosen], "best": min(ms.values())}.items():
                totals[key] += count * value
        click.echo(f"{name} R={rank}: " + "  ".join(f"{key} {value:.0f} ms" for key, value in totals.items()))


if __name__ == "__main__":
    main()
