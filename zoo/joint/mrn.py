"""MRN: shared lower layers, and a tensor-normal prior over the tasks' own (Long et al., NIPS 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.joint.base import Sharing
from zoo.joint.network import Network
from zoo.models.composed import Borrowed, materialised, weight_of

RIDGE = 1e-3  # of a covariance's mean variance, added to its diagonal so that it can be inverted


class Prior(nn.Module):
    """The covariances of a tensor normal over weights (D_1, D_2, T): of inputs, of outputs, and of tasks."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        super().__init__()
        for name, length in zip(("inputs", "outputs", "tasks"), size, strict=True):
            self.register_buffer(name, torch.eye(length))

    @property
    def covariances(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in ("inputs", "outputs", "tasks")]

    def energy(self, weights: Tensor) -> Tensor:
        """`½ vec(W)ᵀ (Σ_1 ⊗ Σ_2 ⊗ Σ_3)⁻¹ vec(W)`."""
        inverses = [torch.linalg.inv(covariance) for covariance in self.covariances]
        return (weights * torch.einsum("ijt,ai,bj,ct->abc", weights, *inverses)).sum() / 2

    def estimate(self, weights: Tensor) -> None:
        """Each covariance by maximum likelihood given the others, in turn; the last two at a mean variance of 1."""
        for mode, covariance in enumerate(self.covariances):
            inverses = [torch.linalg.inv(each) for each in self.covariances]
            inverses[mode] = torch.eye(len(covariance), device=weights.device)
            unfolded = weights.movedim(mode, 0).flatten(1)
            weighed = torch.einsum("ijt,ai,bj,ct->abc", weights, *inverses).movedim(mode, 0).flatten(1)
            found = unfolded @ weighed.T / unfolded.shape[1]
            scale = found.diagonal().mean().clamp(min=1e-12)
            found = found + RIDGE * scale * torch.eye(len(found), device=weights.device)
            covariance.copy_(found if mode == 0 else found / scale)


class MRN(Sharing):
    """Multilinear relationship networks: the lower layers are one for all tasks; the upper ones and the head are not.

    Over the stacked weights (D_1, D_2, T) of a layer that tasks own lies the prior `vec(W) ~ N(0, Σ_1 ⊗ Σ_2 ⊗ Σ_3)`.
    The loss of a batch has `strength` times the prior's energy, the other tasks' weights taken as they stand. After
    each epoch the covariances are estimated anew from the weights (the flip-flop algorithm).

    Args:
        specific: how many of the layers that may share are the tasks' own, from the top; the head always is.
        strength: of the prior in the loss.

    Raises:
        OptionError: layers that are shared, or lie under the prior, are not of one shape for all tasks.
    """

    name, summary = "mrn", "shared lower layers, a tensor-normal prior over the tasks' own"

    def __init__(self, networks: Mapping[str, Network], specific: int = 0, strength: float = 1e-3) -> None:
        super().__init__(networks)
        common = self.common_layers()
        if any(len(plan.layers) != len(common) for plan in self.plans.values()):
            raise OptionError("MRN needs networks of one depth: its lower layers are one for all tasks.")
        if not 0 <= specific <= len(common) or strength < 0:
            raise OptionError(f"MRN needs 0 <= specific <= {len(common)}, strength >= 0; not {specific}, {strength}.")
        kept, self.strength = len(common) - specific, strength
        first, *others = self.plans
        plain = [self.plans[first].plain(), *(self.skeleton(task) for task in others)]  # whose layers will be shared
        heads = tuple(plan.head for plan in self.plans.values())
        self.lower, self.upper = common[:kept], [*common[kept:], heads]
        for paths in [*self.lower, *self.upper]:
            layers = [network.get_submodule(path) for network, path in zip(plain, paths, strict=True)]
            if len({(type(layer), weight_of(layer).shape) for layer in layers}) > 1:
                shapes = " and ".join(str(tuple(weight_of(layer).shape)) for layer in layers)
                raise OptionError(f"MRN needs {paths[0]} to have one shape for all tasks, not {shapes}.")
        self.layers = nn.ModuleDict(
            {str(number): plain[0].get_submodule(paths[0]) for number, paths in enumerate(self.lower, 1)}
        )
        self.priors = nn.ModuleDict()
        for number, paths in enumerate(self.upper, kept + 1):
            outputs, *inputs = weight_of(plain[0].get_submodule(paths[0])).shape
            self.priors[str(number)] = Prior((math.prod(inputs), outputs, len(plain)))

    def network(self, task: str) -> nn.Module:
        made = self.skeleton(task)
        place = list(self.plans).index(task)
        for number, paths in enumerate(self.lower, 1):
            made.set_submodule(paths[place], Borrowed(self.layers[str(number)]))
        return materialised(made)

    def penalty(self, networks: Mapping[str, nn.Module], task: str) -> Tensor | None:
        if not self.strength or len(networks) < len(self.plans):
            return None
        pairs = self._stacks(networks, task)
        return self.strength * torch.stack([prior.energy(weights) for prior, weights in pairs]).sum()

    def adjust(self, networks: Mapping[str, nn.Module]) -> None:
        if len(networks) == len(self.plans):
            with torch.no_grad():
                for prior, weights in self._stacks(networks):
                    prior.estimate(weights)

    def _stacks(self, networks: Mapping[str, nn.Module], task: str = "") -> Iterator[tuple[Prior, Tensor]]:
        """Each prior with its weights, (D_1, D_2, T); those of other tasks than `task` as constants."""
        for prior, paths in zip(self.priors.values(), self.upper, strict=True):
            assert isinstance(prior, Prior)
            weights = [
                weight_of(networks[name].get_submodule(path)).flatten(1).T
                for name, path in zip(self.plans, paths, strict=True)
            ]
            yield (
                prior,
                torch.stack([w if n == task else w.detach() for n, w in zip(self.plans, weights, strict=True)], 2),
            )


SHARING = MRN
