"""A head to begin with: a linear probe of what the network makes of the training images before it is trained.

A random head sends arbitrary gradients into the layers below it, and a short training does not make up for that
(Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022).
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from zoo.catalog.task import CLASSIFICATION
from zoo.datasets import Images, Transformed
from zoo.errors import OptionError
from zoo.models.adapted import TaskModel
from zoo.models.layers import TaskHead
from zoo.models.multitask import MultiTaskModel

DECAY = 3e-3  # weight of the squares, for features of deviation 1; from a tenth to three times that, little changes
STEPS = 200  # of L-BFGS, at most


def fit_head(
    model: MultiTaskModel, task: str, images: Images, accelerator: Accelerator, batch: int = 100, workers: int = 0
) -> None:
    """Fit a task's head to its training images, not augmented, as the network sees them now. Nothing else moves.

    The model stands on the accelerator's device. Every process ends with the first one's head.

    Raises:
        OptionError: the task's head is not one Linear layer, called once in a pass with a row for each image.
    """
    head, known = _linear_head(model, task), model.task(task)
    features, labels = [], []
    loader = DataLoader(Transformed(images, known.preprocessing.transform()), batch, num_workers=workers)
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach().float()))
    model.eval()
    try:
        with torch.no_grad():
            for inputs, targets in loader:
                model.answering(task)(inputs.to(accelerator.device))
                labels.append(targets.to(accelerator.device))
    finally:
        hook.remove()
    y = torch.cat(labels)
    x = torch.cat(features) if features else y
    if x.ndim != 2 or len(x) != len(y):
        raise OptionError(f"head: probe needs a head that is called once, with a row per image; {task} has another.")
    weight, bias = logistic_regression(x, y, len(known.classes))
    with torch.no_grad():
        head.weight.copy_(broadcast(weight))
        head.bias.copy_(broadcast(bias))


def _linear_head(model: MultiTaskModel, task: str) -> nn.Linear:
    sites = model.sites(task) if isinstance(model, TaskModel) else ()
    known = model.task(task)
    heads = [site.tasks[task] for _, site in sites if isinstance(site, TaskHead)]
    if known.kind != CLASSIFICATION or len(heads) != 1 or not isinstance(heads[0], nn.Linear) or heads[0].bias is None:
        raise OptionError(f"head: probe needs a classifier that is one Linear layer with a bias; {task} has another.")
    return heads[0]


def logistic_regression(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression of labels (N) on features (N, D): a weight (classes, D) and a bias (classes).

    Features are centred, and scaled by one number, for the fit alone.
    """
    centre, scale = x.mean(0), x.std().clamp_min(1e-12)
    z = (x - centre) / scale
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(z @ weight.T + bias, y) + DECAY / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    made = weight.detach() / scale
    return made, bias.detach() - made @ centre
