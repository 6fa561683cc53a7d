"""An enumerated label in simulation-based calibration: its probabilities, and how the simulated one ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from torch import Tensor

from pyro_scnf.posterior.draws import Site
from pyro_scnf.posterior.labels import sample_labels
from pyro_scnf.posterior.runs import Runs
from pyro_scnf.sharing import evaluation

__all__ = ["RankedLabel", "rank_label"]

Values = Mapping[str, Tensor]


class RankedLabel(NamedTuple):
    r"""Numbers that depend on the labels of all rows: for the simulated labels, and for labels drawn anew.

    The labels drawn anew belong to a posterior draw each. If inference is right, they and the draw are as
    likely as the simulated labels and the true parameters. So each number of the truth has a uniform rank.
    """

    names: tuple[str, ...]
    truth: Tensor
    r""":math:`\sum_n \log p(y_n \mid x, \theta)`, then the number of rows of each class, ``(1 + K,)``."""
    drawn: Tensor
    """The same for each draw, ``(S, 1 + K)``."""
    log_probs: Tensor
    r""":math:`\log p(y_n = k \mid x)`, averaged over the draws, ``(rows, K)``."""
    values: Tensor
    """The simulated labels ``(rows,)``."""


@torch.no_grad()
def rank_label(
    model: Callable[..., object],
    args: Sequence[object],
    draws: Values,
    found: Mapping[str, Site],
    label: str,
    nesting: int,
    parallel: bool | None,
) -> RankedLabel:
    """Draw labels anew for each posterior draw, and number them and the simulated ones.

    :param model: observes the simulated data.
    :param draws: of the latents, ``(S, *shape)``.
    :param found: the sites of the simulation.
    :raises ValueError: if the label is no class number, a mask leaves rows out, or a row is impossible.
    """
    if found[label]["fn"].event_dim:
        raise ValueError(
            f"label={label!r} has values of shape {tuple(found[label]['fn'].event_shape)}, expected class "
            "numbers; use Categorical in place of OneHotCategorical"
        )
    count = len(next(iter(draws.values())))
    with evaluation():
        true = {name: found[name]["value"].detach().cpu() for name in draws}
        # The truth is one more draw, so that its numbers have the same rounding errors.
        every = {k: torch.cat([v.reshape(-1, *true[k].shape), true[k][None].to(v)]) for k, v in draws.items()}
        tables = Runs(model, args, nesting, parallel).tables(every, label)
        joint = torch.cat([table.without_masked_rows() for table in tables]).cpu()
        log_probs = joint.log_softmax(-1).flatten(1, -2)
        values = found[label]["value"].detach().cpu().long().reshape(-1)
        _check_rows(joint.flatten(1, -2), log_probs, label)
        if tables[0].shared:
            drawn = _draw_together(model, args, every, found, label, nesting)
        else:
            drawn = sample_labels(joint).flatten(1)
    every_label = torch.cat([drawn[:count], values[None]])
    kinds = log_probs.shape[-1]
    numbers = torch.cat(
        [
            log_probs.gather(-1, every_label[..., None]).sum(1),
            torch.nn.functional.one_hot(every_label, kinds).sum(1),
        ],
        dim=-1,
    )
    names = (f"log p({label} | x)", *(f"count({label} = {k})" for k in range(kinds)))
    mean = log_probs[:count].logsumexp(0) - math.log(count)
    return RankedLabel(names, numbers[-1], numbers[:count], mean, values)


def _check_rows(joint: Tensor, log_probs: Tensor, label: str) -> None:
    """Raise for rows without probabilities."""
    if bool(joint.isnan().any()):
        raise ValueError(f"label={label!r}: a mask leaves rows out of the model, expected all of them in it")
    impossible = log_probs.isnan().any(-1).nonzero()
    if len(impossible):
        draw, row = impossible[0].tolist()
        where = f"draw {draw} of infer" if draw < len(joint) - 1 else "the simulated parameters"
        raise ValueError(f"label={label!r}: row {row} has probability 0 under all labels, given {where}")


def _draw_together(
    model: Callable[..., object],
    args: Sequence[object],
    draws: Values,
    found: Mapping[str, Site],
    label: str,
    nesting: int,
) -> Tensor:
    """Labels ``(S, rows)`` of rows that another hidden site ties together, such as members of a group."""
    labels = []
    for s in range(len(next(iter(draws.values())))):
        data = {name: values[s].to(found[name]["value"]) for name, values in draws.items()}
        fixed = poutine.condition(model, data=data)
        posterior = infer_discrete(config_enumerate(fixed), first_available_dim=-1 - nesting)
        value = poutine.trace(posterior).get_trace(*args).nodes[label]["value"]
        labels.append(value.expand(found[label]["value"].shape).reshape(-1).long().cpu())
    return torch.stack(labels)
