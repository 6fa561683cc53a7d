"""Expectation-maximisation of mixtures and class probabilities: the E-step of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_scnf._state import Parts
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.models.scoring import Arguments, Rows, divide
from pyro_scnf.models.semi_supervised import SemiSupervisedModel

__all__ = ["Expected", "LearnsByEM", "check_plain", "expected_labels", "learns_by_em", "trained_by_em"]


@runtime_checkable
class LearnsByEM(Protocol):
    """A prior that EM trains, such as a :class:`~pyro_scnf.priors.GaussianMixturePrior` with ``"em"``.

    Keep the statistics in buffers, so that checkpoints hold them.
    """

    @property
    def fitted_by_em(self) -> bool:
        """Whether EM trains any of its tables."""

    def accumulate(self, z_f: Tensor, weights: Tensor) -> None:
        """Add latents ``(B, *latent_shape)`` with weights ``(B, K)`` to the statistics of the E-step."""

    def maximise(self) -> None:
        """The M-step."""

    def update(self) -> None:
        """The M-step after an optimiser step, which forgets a share of the statistics."""

    def restart(self) -> None:
        """Forget all statistics."""


@dataclass(frozen=True)
class Expected:
    """The E-step of a batch: latents, and label posteriors times the weights of the rows. Without gradient.

    :ivar Tensor z_f: ``(B, *latent_shape)``.
    :ivar Tensor weights: ``(B, K)``. The posterior of a known label is one-hot.
    :ivar Tensor class_weights: those of the rows that tell of p(y), ``(B', K)``. With ``balanced_labels``
        labelled rows do not, and rows with evidence never do, because it takes the place of p(y).
    """

    z_f: Tensor
    weights: Tensor
    class_weights: Tensor

    def accumulate(self, model: SemiSupervisedModel) -> None:
        """Add the batch to the statistics of the parts of ``model`` that EM trains."""
        for part in trained_by_em(model):
            if isinstance(part, ClassProbs):
                part.accumulate(self.class_weights)
            else:
                part.accumulate(self.z_f, self.weights)


def trained_by_em(model: SemiSupervisedModel) -> list[LearnsByEM | ClassProbs]:
    """The parts of ``model`` that EM trains."""
    prior = model.flow.prior
    parts: list[LearnsByEM | ClassProbs] = [prior] if isinstance(prior, LearnsByEM) else []
    return [part for part in (*parts, model.class_probs) if part.fitted_by_em]


def learns_by_em(model: object) -> TypeGuard[SemiSupervisedModel]:
    """Whether EM trains the prior or the class probabilities of ``model``."""
    return isinstance(model, SemiSupervisedModel) and bool(trained_by_em(model))


def expected_labels(model: SemiSupervisedModel, *args: Tensor, **kwargs: Tensor) -> Expected:
    """The E-step of a batch under the current parameters.

    :func:`pyro_scnf.elbo` computes it as ``loss.expected``, from the encodings that it has already. The
    posterior is the exact one, whatever the guide of the loss.

    :param args: the arguments of the model, and ``kwargs`` likewise.
    :raises ValueError: for arguments that the model refuses, or if a table of the prior is a random site.
    """
    check_plain(model)
    batch = Arguments.of(args, kwargs)
    if batch.x is None:
        raise ValueError("expected_labels: nothing is observed, expected x")
    known, labelled, unlabelled = divide(model, batch)
    latents, weights, of_classes = [], [], []
    if labelled is not None and known is not None:
        z_f, q = _e_step(model, labelled, known)
        q = q * labelled.scale * model.labelled_weight
        if batch.x_unlabelled is None:
            q = _weighed(q, batch.weights, labelled)
        latents.append(z_f)
        weights.append(q)
        if not model.balanced_labels and labelled.evidence is None:
            of_classes.append(q)
    if unlabelled is not None and len(unlabelled):
        z_f, q = _e_step(model, unlabelled, None)
        q = _weighed(q * unlabelled.scale, batch.weights, unlabelled)
        latents.append(z_f)
        weights.append(q)
        if unlabelled.evidence is None:
            of_classes.append(q)
    together = torch.cat(weights)
    return Expected(torch.cat(latents), together, torch.cat(of_classes) if of_classes else together[:0])


def check_plain(model: SemiSupervisedModel) -> None:
    """Raise if the prior or the class probabilities draw a table. EM would take any draw for the table."""
    if Parts.of((model.flow.prior, model.class_probs)).are_random:
        raise ValueError(
            "model: EM trains a part of it, and the prior or the class probabilities have a PyroSample; "
            "expected plain tables"
        )


def _e_step(model: SemiSupervisedModel, rows: Rows, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Latents and label posteriors of rows, without gradient."""
    z_f = model.flow.encode(rows.x)[1].detach()
    if rows.mask is not None:
        z_f = z_f[rows.mask]
    posterior = rows.score(model).log_posterior.detach().exp()
    return z_f, posterior if known is None else one_hot(known, posterior.shape[-1]).to(posterior.dtype)


def _weighed(q: Tensor, weights: Tensor | None, rows: Rows) -> Tensor:
    if weights is None:
        return q
    picked = weights if rows.mask is None else weights[rows.mask]
    return q * picked[:, None].to(q.dtype)
