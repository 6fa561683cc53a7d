r"""Pre-training of continuous flows without a solver, by conditional flow matching.

Data x and noise :math:`\epsilon` are paired, and joined by straight paths :math:`x_s = (1 - s)\, x + s\,
\epsilon`. The velocity field learns the mean velocity of the paths through each point,

.. math:: \min_f \; \mathbb E_{s, x, \epsilon}
    \bigl\lVert T f(s T, x_s) - (\epsilon - x) \bigr\rVert^2 .

The flow of this field carries the data to standard normal latents. A step costs one evaluation, where a step
of likelihood costs a solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_at_least, check_kinds, check_number, check_word
from pyro_scnf._random import seeded
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.datasets.augment import as_augment
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.transforms import Compose, ContinuousFlow, FlowTransform, MultiScale
from pyro_scnf.transforms.compose import Layer
from pyro_scnf.transforms.shape import Rearrangement

__all__ = ["match_flow"]

ROWS = 2000
"""So many unlabelled rows, and all labelled ones, set the data-dependent parameters of the prior."""


def match_flow(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    *,
    steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    coupling: Literal["optimal", "independent"] = "optimal",
    augment: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Pre-train the continuous flow :math:`f_w` of ``model`` by conditional flow matching, in place.

    It makes the latents standard normal, whatever the labels. The prior then begins anew from the latents.
    Go on with :func:`fit`: the likelihood, which the solver computes to its tolerance, teaches the prior and
    refines the flow.

    :param model: an initialised model whose :math:`f_w` has one continuous layer, the deepest, such as
        ``flows.ffjord(2)``. Layers nearer to the data stay as they are. A field of your own is called with
        times that broadcast against z, ``(B, 1)`` or ``(B, 1, 1, 1)``.
    :param data: rows to learn from, the labelled ones and the others. Their labels matter to the prior only.
    :param int steps: optimiser steps of Adam, whose learning rate falls to 0 along a cosine.
    :param int batch_size: rows a step.
    :param float learning_rate: the learning rate at the beginning.
    :param coupling: how data and noise are paired: ``"optimal"``, so that the squared distances within a
        batch add up to the least (extra ``ode``, by SciPy), which makes paths straighter; or
        ``"independent"``.
    :param augment: see :class:`~pyro_scnf.datasets.Augment`.
    :param int seed: seed of batches and noise. The global random generators stay as they are.
    :return: the loss of each step, ``(steps,)``: the mean squared error of a component of the velocity.
    :raises ValueError: for another kind of :math:`f_w`, a frozen field, or an option out of range.
    :raises RuntimeError: if the loss becomes NaN or infinite.

    References: Lipman et al., *Flow Matching for Generative Modeling*, 2023; Tong et al., *Improving and
    Generalizing Flow-Based Generative Models with Minibatch Optimal Transport*, 2024.
    """
    check_kinds(model=(model, SemiSupervisedModel), data=(data, SemiSupervisedData))
    check_at_least(1, steps=steps, batch_size=batch_size)
    check_at_least(0, seed=seed)
    check_number("learning_rate", learning_rate, above=0)
    check_word("coupling", coupling, ("optimal", "independent"))
    before, layer = _parts(model.flow.transform)
    change, device = as_augment(augment), reference_tensor(model).device
    trained = [parameter for parameter in layer.net.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("model: no parameter of its velocity field has requires_grad=True")
    optimizer = torch.optim.Adam(trained, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    with seeded(seed, device), torch.inference_mode(False), torch.enable_grad():
        for number in range(steps):
            rows = data.x[torch.randint(len(data.x), (batch_size,))].to(device)
            x = model.flow.check_data(change(rows), "augment(x)", "match_flow")
            with torch.no_grad():
                for each in before:
                    x = each._inverse_ladj(x)[0]
            loss = _error(layer, x, _paired(x, coupling))
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"match_flow stopped at step {number}: the loss is not finite; lower learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        _initialize_prior(model, data, change.prepare)
    return torch.stack(losses).cpu()


def _parts(transform: FlowTransform) -> tuple[list[Layer], ContinuousFlow]:
    """The layers that data pass first, and the continuous layer behind them."""
    path = _path(transform)
    while path and isinstance(path[-1], Rearrangement):
        path.pop()
    kinds = [type(layer).__name__ for layer in path]
    if kinds.count("ContinuousFlow") != 1 or not isinstance(path[-1], ContinuousFlow):
        raise ValueError(
            "model: flow matching needs a transform with one continuous layer, the deepest, such as "
            f"flows.ffjord(2); from data to latent, it has the layers {', '.join(kinds) or 'none'}"
        )
    return path[:-1], path[-1]


def _path(layer: Layer) -> list[Layer]:
    """The layers of a flow of one scale, from data to latent."""
    if isinstance(layer, MultiScale) and len(layer.stages) == 1:
        return _path(layer.stages[0])
    if isinstance(layer, Compose):
        return [inner for each in reversed(layer.layers) for inner in _path(each)]
    return [layer]


def _paired(x: Tensor, coupling: str) -> Tensor:
    """Noise for each row of ``x``."""
    noise = torch.randn_like(x)
    if coupling == "independent":
        return noise
    assign = require("scipy.optimize", "ode").linear_sum_assignment
    distances = torch.cdist(x.flatten(1), noise.flatten(1)).square()
    return noise[torch.as_tensor(assign(distances.cpu().numpy())[1], device=x.device)]


def _error(layer: ContinuousFlow, x: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, at one random time of each path."""
    share = torch.rand((len(x),) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
    between = (1 - share) * x + share * noise
    end_time = layer.end_time.detach()
    velocity = layer.net(share * end_time, between)
    return (end_time * velocity - (noise - x)).square().mean()


@torch.no_grad()
def _initialize_prior(
    model: SemiSupervisedModel, data: SemiSupervisedData, prepare: Callable[[Tensor], Tensor]
) -> None:
    """Set the data-dependent parameters of the prior from the latents that rows have now."""
    labelled, others = ((data.y != UNLABELLED).nonzero()[:, 0], (data.y == UNLABELLED).nonzero()[:, 0])
    rows, device = torch.cat([labelled, others[:ROWS]]), reference_tensor(model).device
    z_f = model.flow.encode(prepare(data.x[rows].to(device)))[1]
    model.flow.prior.initialize(z_f, data.y[rows].to(device))
