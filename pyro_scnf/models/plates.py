"""Plates of data, weights of their rows, partly known labels, and factors for training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.runtime import InferDict
from torch import Tensor

from pyro_scnf.class_probs import Categorical
from pyro_scnf.distributions import check_expansion

__all__ = ["PartlyKnown", "data_plate", "training_term", "weigh"]


def data_plate(name: str, size: int | None, rows: int, device: torch.device) -> pyro.plate:
    """A plate of ``rows`` data. If ``size`` is given, it scales them up to a data set of that size."""
    if size is None or size == rows:
        return pyro.plate(name, rows)
    return pyro.plate(name, size, subsample=torch.arange(rows, device=device))


def weigh(handlers: ExitStack, weights: Tensor | None) -> None:
    """Enter handlers that weigh the rows of the sites to come, if there are ``weights``.

    A mask leaves out rows of weight 0, because Pyro's scale refuses that weight.
    """
    if weights is not None:
        keep = cast(torch.BoolTensor, weights > 0)
        handlers.enter_context(poutine.mask(mask=keep))
        handlers.enter_context(poutine.scale(scale=torch.where(keep, weights, torch.ones_like(weights))))


class PartlyKnown(Categorical):
    """A label that is known in some rows. Sampling returns the known labels and draws the others.

    Scores are those of the ``Categorical`` in all rows. Enumeration does not sample, so the model needs a
    factor that rules out the other labels of known rows.

    Pyro makes the distributions of ``compute_marginals`` and ``sample_posterior`` by calling the class of a
    site with ``logits`` alone. These logits have that factor in them, so such an object knows no labels
    apart from them.

    :param labels: labels ``(B,)``.
    :param known: which of them are known, ``(B,)``.
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        labels: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        self.labels, self.known = labels, known
        super().__init__(probs, logits, validate_args)

    @classmethod
    def of(cls, prior: dist.Categorical, labels: Tensor, known: Tensor) -> PartlyKnown:
        """``prior`` in the rows that are not known."""
        batch = torch.broadcast_shapes(prior.batch_shape, labels.shape)
        logits = prior.logits.expand(*batch, -1)
        return cls(logits=logits, validate_args=False, labels=labels, known=known)

    def expand(self, batch_shape: Sequence[int], _instance: PartlyKnown | None = None) -> PartlyKnown:
        check_expansion(self, batch_shape)
        new: PartlyKnown = super().expand(batch_shape, self._get_checked_instance(PartlyKnown, _instance))
        new.labels, new.known = self.labels, self.known
        return new

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        drawn: Tensor = super().sample(sample_shape)
        if self.labels is None or self.known is None:
            return drawn
        if len(sample_shape):  # in a model, only Monte Carlo in the place of enumeration asks for several
            raise ValueError(
                "num_samples: some labels of the batch are known, and drawing them several times would lose "
                "their log p(y); leave it out, so that the labels are enumerated, or give model(x, y, "
                "x_unlabelled)"
            )
        return torch.where(self.known, self.labels, drawn)


class _TermInfer(InferDict):
    """Pyro's options of a site, and the mark by which ``enumerate_labels`` recognises a training term."""

    training_only: bool


def training_term(name: str, log_factor: Tensor) -> None:
    """A factor for training that is no part of the generative model. ``enumerate_labels`` leaves it out."""
    term = dist.Unit(log_factor, has_rsample=False)
    infer: _TermInfer = {"is_auxiliary": True, "training_only": True}
    pyro.sample(name, term, obs=term.sample(), infer=infer)
