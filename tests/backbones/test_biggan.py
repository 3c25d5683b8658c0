"""BigGAN's generator: names, shapes and counts of the published one, and the same pictures of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from zoo.backbones.biggan import BigGAN, published
from zoo.backbones.generator import Prior
from zoo.backbones.weights import pretrained_tensors
from zoo.catalog.registry import default_registry
from zoo.errors import WeightsError
from zoo.loader import counted_parameters, pretrained_network

# Of each block at 128 pixels: channels that it takes and gives (Brock et al. 2019, Table 4, with a width of 96).
CHANNELS = [(1536, 1536), (1536, 768), (768, 384), (384, 192), (192, 96)]


def published_shapes(channels: list[tuple[int, int]], chunk: int, classes: int, embedding: int, attention: int | None
                     ) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Names and shapes of a generator of BigGAN-PyTorch, but for what spectral norm keeps.

    Args:
        attention: the block that one with attention follows.
    """
    found: dict[str, tuple[int, ...]] = {"shared.weight": (classes, embedding)}
    found |= {"linear.weight": (channels[0][0] * 16, chunk), "linear.bias": (channels[0][0] * 16,)}
    for number, (c_in, c_out) in enumerate(channels):
        block = f"blocks.{number}.0"
        found |= {f"{block}.conv1.weight": (c_out, c_in, 3, 3), f"{block}.conv1.bias": (c_out,)}
        found |= {f"{block}.conv2.weight": (c_out, c_out, 3, 3), f"{block}.conv2.bias": (c_out,)}
        found |= {f"{block}.conv_sc.weight": (c_out, c_in, 1, 1), f"{block}.conv_sc.bias": (c_out,)}
        for norm, width in (("bn1", c_in), ("bn2", c_out)):
            found |= {f"{block}.{norm}.{part}.weight": (width, embedding + chunk) for part in ("gain", "bias")}
            found |= {f"{block}.{norm}.stored_{part}": (width,) for part in ("mean", "var")}
        if number == attention:
            inside, at = c_out // 8, f"blocks.{number}.1"
            found |= {f"{at}.theta.weight": (inside, c_out, 1, 1), f"{at}.phi.weight": (inside, c_out, 1, 1)}
            found |= {f"{at}.g.weight": (c_out // 2, c_out, 1, 1), f"{at}.o.weight": (c_out, c_out // 2, 1, 1)}
            found[f"{at}.gamma"] = ()
    last = channels[-1][1]
    found |= {f"output_layer.0.{part}": (last,) for part in ("gain", "bias", "stored_mean", "stored_var")}
    return found | {"output_layer.2.weight": (3, last, 3, 3), "output_layer.2.bias": (3,)}


def normalised(name: str) -> bool:
    """Whether the weight has a spectral norm in BigGAN-PyTorch: that of every layer but the embedding."""
    return name.endswith(".weight") and name != "shared.weight"


def theirs(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random tensors of a published generator, the vectors of spectral norm near their weights' own."""
    generator = torch.Generator().manual_seed(3)
    found = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found |= {name: found[name].abs() + 0.5 for name in shapes if name.endswith("stored_var")}
    for name in filter(normalised, shapes):
        matrix = found[name].flatten(1)
        vector = torch.linalg.svd(matrix)[0][:, 0] + 0.01 * F.normalize(
            torch.randn(len(matrix), generator=generator), dim=0
        )
        layer = name.removesuffix(".weight")
        found |= {f"{layer}.u0": F.normalize(vector, dim=0)[None], f"{layer}.sv0": torch.ones(1)}
    return found


def reference(tensors: dict[str, Tensor], z: Tensor, classes: Tensor, channels: int, attention: int | None) -> Tensor:
    """BigGAN's generator by its paper, in functions of torch's: upsampled before the shortcut's convolution."""

    def weight(layer: str) -> Tensor:
        own = tensors[f"{layer}.weight"]
        return own / torch.linalg.svdvals(own.flatten(1))[0]

    def normed(x: Tensor, norm: str, y: Tensor) -> Tensor:
        gain, bias = 1 + y @ weight(f"{norm}.gain").T, y @ weight(f"{norm}.bias").T
        x = (x - tensors[f"{norm}.stored_mean"][:, None, None]) / (
            tensors[f"{norm}.stored_var"][:, None, None] + 1e-5
        ).sqrt()
        return x * gain[..., None, None] + bias[..., None, None]

    def convolved(x: Tensor, layer: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, weight(layer), tensors.get(f"{layer}.bias"), padding=padding)

    chunk = z.shape[1] // (channels + 1)
    h = F.linear(z[:, :chunk], weight("linear"), tensors["linear.bias"]).view(len(z), -1, 4, 4)
    for number in range(channels):
        y = torch.cat([tensors["shared.weight"][classes], z[:, (number + 1) * chunk : (number + 2) * chunk]], 1)
        block = f"blocks.{number}.0"
        up = F.relu(normed(h, f"{block}.bn1", y)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        inner = F.relu(normed(convolved(up, f"{block}.conv1", 1), f"{block}.bn2", y))
        aside = convolved(h.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{block}.conv_sc")
        h = convolved(inner, f"{block}.conv2", 1) + aside
        if number == attention:
            at, (height, width) = f"blocks.{number}.1", h.shape[2:]
            query, key, value = (convolved(h, f"{at}.{part}") for part in ("theta", "phi", "g"))
            key, value = (F.max_pool2d(each, 2).flatten(2) for each in (key, value))
            looked = torch.einsum("bcq,bck->bqk", query.flatten(2), key).softmax(2)
            found = torch.einsum("bqk,bck->bcq", looked, value).view(len(h), -1, height, width)
            h = h + tensors[f"{at}.gamma"] * convolved(found, f"{at}.o")
    h = F.batch_norm(
        h, tensors["output_layer.0.stored_mean"], tensors["output_layer.0.stored_var"], tensors["output_layer.0.gain"],
        tensors["output_layer.0.bias"],
    )  # fmt: skip
    return convolved(F.relu(h), "output_layer.2", 1).tanh()


def test_biggan128_has_the_names_shapes_and_parameters_of_the_published_generator() -> None:
    shapes = published_shapes(CHANNELS, 20, 1000, 128, 3)
    with torch.device("meta"):
        network = BigGAN()
        given = {name: torch.empty(shape) for name, shape in shapes.items()}
        given |= {f"{n.removesuffix('.weight')}.u0": torch.empty(1, s[0]) for n, s in shapes.items() if normalised(n)}
    assert sum(p.numel() for p in network.parameters()) == 70_433_988
    counted = [n for n in shapes if "stored" not in n]
    assert sum(torch.Size(shapes[name]).numel() for name in counted) == 70_433_988
    made = published(given, "given")
    own = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in own.items()}


@pytest.mark.parametrize("size", [32, 64])
def test_published_weights_make_the_pictures_that_the_paper_describes(size: int) -> None:
    channels = {32: [(8, 8)] * 3, 64: [(128, 128), (128, 64), (64, 32), (32, 16)]}[size]
    width, chunks, attention = (2, 4, None) if size == 32 else (8, 5, 3)
    given = theirs(published_shapes(channels, 3, 5, 4, attention))
    network = BigGAN(size, width, 3 * chunks, 5, 4).eval()
    made = published(given, "given")
    network.load_state_dict({**{n: t for n, t in network.state_dict().items() if "num_batches" in n}, **made})
    z, classes = torch.randn(3, 3 * chunks), torch.tensor([0, 4, 2])
    expected = reference(given, z, classes, len(channels), attention)
    torch.testing.assert_close(network(z, classes), expected, atol=2e-4, rtol=1e-3)
    plain = reference(given, z, torch.zeros(3, dtype=torch.int64), len(channels), attention)
    torch.testing.assert_close(network(z), plain,
                               atol=2e-4, rtol=1e-3)  # fmt: skip
    assert network(z).shape == (3, 3, size, size)
    assert expected.std() > 0.05  # of pictures, not of grey


def test_weights_are_read_from_the_files_of_both_makers(tmp_path: Path) -> None:
    given = theirs(published_shapes([(48, 48)] * 3, 12, 1, 4, None))
    torch.save(given, tmp_path / "G_ema.pth")
    save_file(given, tmp_path / "G_ema.safetensors")
    name, registry = "zoo/biggan32x0.125", default_registry()
    first, second = (
        pretrained_network(name, registry, file=tmp_path / f"G_ema.{end}") for end in ("pth", "safetensors")
    )
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    save_file({n: t.clone() for n, t in first.state_dict().items()}, tmp_path / "own.safetensors")
    own = pretrained_tensors(name, registry, tmp_path / "own.safetensors")
    assert all(torch.equal(tensor, own[key]) for key, tensor in first.state_dict().items())  # taken as they are

    wide = theirs(published_shapes([(96, 96)] * 3, 12, 1, 4, None))
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"linear\.weight"):
        pretrained_network(name, registry, file=tmp_path / "wide.safetensors")
    save_file({**given, "linear.u0": torch.ones(1, 5)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=r"linear\.weight has 768 rows, and the vector of its spectral norm 5"):
        pretrained_network(name, registry, file=tmp_path / "odd.safetensors")


def test_the_papers_counts_come_out() -> None:
    """71.4 M for a network, 3.9 M for a domain at R = 50 (FTN, Appendix F), both within 1.5 %."""
    registry = default_registry()
    found = counted_parameters(registry.entry("biggan128-ftn-r50-seasons"), registry)
    assert found.backbone == pytest.approx(71.4e6, rel=0.015)
    assert found.per_task == pytest.approx(3.9e6, rel=0.015)
    channels = sum(c_in + c_out + 9 for c_in, c_out in CHANNELS) + sum(2 * c_out + 9 for _, c_out in CHANNELS)
    factors = channels + sum(c_in + c_out + 1 for c_in, c_out in CHANNELS) + 2 * (24 + 192 + 1) + 2 * (96 + 192 + 1)
    factors += 3 + 96 + 9
    linear = 20 * 24576 + 24576 + 1000 * 128 + 2 * 148 * sum(c_in + c_out for c_in, c_out in CHANNELS)
    assert 0 <= 50 * factors + linear + 2 * 96 - found.per_task < 0.005 * found.per_task


def test_latents_are_drawn_from_where_those_of_pictures_lie() -> None:
    torch.manual_seed(0)
    latents = torch.randn(4000, 3) @ torch.tensor([[2.0, 0.3, 0.0], [0.0, 0.5, 0.1], [0.0, 0.0, 0.0]]) + 5
    prior = Prior(3)
    prior.fit(latents)
    torch.testing.assert_close(prior.mean, latents.mean(0))
    torch.testing.assert_close(prior.covariance, latents.T.cov(), atol=1e-5, rtol=1e-5)
    drawn = prior.draw(20000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), prior.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), prior.covariance, atol=0.1, rtol=0.05)
    assert torch.equal(prior.draw(3, torch.Generator().manual_seed(1)), drawn[:3])
    prior.fit(latents[:1])  # of a single picture
    torch.testing.assert_close(prior.draw(2, torch.Generator()), latents[[0, 0]])
