"""How much drawn pictures are like real ones, in what a network of the zoo's sees in both."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.catalog.entry import Entry
from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import Registry
from zoo.datasets import Transformed, benchmark_of
from zoo.errors import extra
from zoo.loader import pretrained_network
from zoo.models.multitask import MultiTaskModel

SEER = "zoo/resnet20@shapes"  # the packaged network whose features are compared
KID = f"KID in {SEER}"
MOST = 300  # pictures of each sort
SUBSETS, SUBSET = 50, 50  # of which the mean is taken, and pictures in each


class Features(nn.Module):
    """What the packaged network makes of pictures (B, 3, S, S) in [−1, 1] before it classifies them, (B, 64)."""

    num_features = 64

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self.network = pretrained_network(SEER, registry, apart=("fc",)).eval()
        self.network.fc = nn.Identity()
        self.input = load_recipe("shapes/pretrain").input

    def forward(self, pictures: Tensor) -> Tensor:
        sized = F.interpolate(pictures, self.input.shape, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(each).view(-1, 1, 1).to(sized) for each in (self.input.mean, self.input.std))
        features: Tensor = self.network(((sized + 1) / 2 - mean) / std)
        return features


def kernel_distance(
    entry: Entry, model: MultiTaskModel, task: str, registry: Registry, data_root: Path | None = None
) -> float:
    """The kernel distance (Bińkowski et al. 2018) between a task's training pictures and as many that are drawn, in the
    features of the zoo's packaged network: it compares with itself alone, and not with what Inception's features give.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """
    with extra("dense", "The kernel distance of pictures"):
        from torchmetrics.image.kid import KernelInceptionDistance

    real = Transformed(benchmark_of(entry).splits(task, entry.images_root(data_root)).train, model.transforms(task))
    count = min(MOST, len(real))
    shown = torch.linspace(0, len(real) - 1, count).long().tolist()  # of all, and not of the first webcams
    device = next(model.backbone_parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features: these are few
        meter = KernelInceptionDistance(Features(registry), subsets=SUBSETS, subset_size=min(SUBSET, count)).to(device)
    latents = model.prior(task).draw(count, torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the subsets
        for place in range(0, count, SUBSET):
            some = range(place, min(place + SUBSET, count))
            meter.update(torch.stack([real[shown[index]][0] for index in some]).to(device), real=True)
            meter.update(model(latents[some.start : some.stop], task=task), real=False)
        return float(meter.compute()[0])
