"""Plates of data, weights of their rows, and what stands in them besides label and datum."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

__all__ = ["PartlyKnown", "count_rows", "data_plate", "training_term", "weigh"]


def data_plate(name: str, size: int | None, rows: int, device: torch.device) -> Any:
    """A plate of ``rows`` data, standing for ``size`` of them if given."""
    if size is None or size == rows:
        return pyro.plate(name, rows)
    if rows > size:
        raise ValueError(f"plate {name!r}: a batch of {rows} rows from a data set of {size}")
    return pyro.plate(name, size, subsample=torch.arange(rows, device=device))


def weigh(handlers: ExitStack, weights: Tensor | None) -> None:
    """Weigh the rows of the sites to come; weight 0, which Pyro's scale refuses, leaves a row out."""
    if weights is not None:
        keep: Any = weights > 0
        handlers.enter_context(poutine.mask(mask=keep))
        handlers.enter_context(poutine.scale(scale=torch.where(keep, weights, torch.ones_like(weights))))


def count_rows(x: Tensor | None, y: Tensor | None, n: int | None) -> int:
    if x is not None:
        return len(x)
    if y is not None:
        return len(y)
    if n is None:
        raise ValueError("SemiSupervisedModel: nothing observed; give n, the number of rows to draw")
    return n


class PartlyKnown(dist.Categorical):
    """A label of which some rows are known: these are drawn as they are, and scored like the others.

    Enumeration does not draw; there, a factor rules the other labels out.
    """

    def __init__(self, prior: Any, y: Tensor, known: Any) -> None:
        self.labels, self.known = y, known
        batch = torch.broadcast_shapes(prior.batch_shape, y.shape)
        super().__init__(logits=prior.logits.expand(*batch, -1), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = super().expand(batch_shape, self._get_checked_instance(PartlyKnown, _instance))
        new.labels, new.known = self.labels, self.known
        return new

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return torch.where(self.known, self.labels, super().sample(sample_shape))


def training_term(name: str, log_factor: Tensor) -> None:
    """A factor that is no part of the generative model: ``enumerate_labels`` leaves it out."""
    term = dist.Unit(log_factor, has_rsample=False)
    infer: Any = {"is_auxiliary": True, "training_only": True}
    pyro.sample(name, term, obs=term.sample(), infer=infer)
