"""Expectation-maximisation of mixtures and class probabilities: the E-step, and exact EM on all data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_scnf._checks import UNLABELLED, check_row_labels
from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import check_at_least, check_number
from pyro_scnf._shapes import in_double, reference_tensor
from pyro_scnf._state import Parts
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.models.arguments import check_possible
from pyro_scnf.models.scoring import Arguments, Rows, divide
from pyro_scnf.models.semi_supervised import SemiSupervisedModel

__all__ = ["Expected", "LearnsByEM", "expected_labels", "fit_by_em", "learns_by_em"]


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
        for part in _trained(model):
            if isinstance(part, ClassProbs):
                part.accumulate(self.class_weights)
            else:
                part.accumulate(self.z_f, self.weights)


def _trained(model: SemiSupervisedModel) -> list[LearnsByEM | ClassProbs]:
    """The parts of ``model`` that EM trains."""
    prior = model.flow.prior
    parts: list[LearnsByEM | ClassProbs] = [prior] if isinstance(prior, LearnsByEM) else []
    return [part for part in (*parts, model.class_probs) if part.fitted_by_em]


def learns_by_em(model: object) -> TypeGuard[SemiSupervisedModel]:
    """Whether EM trains the prior or the class probabilities of ``model``."""
    return isinstance(model, SemiSupervisedModel) and bool(_trained(model))


def expected_labels(model: SemiSupervisedModel, *args: Tensor, **kwargs: Tensor) -> Expected:
    """The E-step of a batch under the current parameters.

    :func:`pyro_scnf.elbo` computes it as ``loss.expected``, from the encodings that it has already. The
    posterior is the exact one, whatever the guide of the loss.

    :param args: the arguments of the model, and ``kwargs`` likewise.
    :raises ValueError: for arguments that the model refuses, or if a table of the prior is a random site.
    """
    _check_plain(model)
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


def _check_plain(model: SemiSupervisedModel) -> None:
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


@torch.no_grad()
def fit_by_em(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Tensor | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-6,
    batch_size: int = 1000,
) -> list[float]:
    r"""Exact EM for mixture tables and class probabilities, with the flow held fixed.

    Each iteration takes the label posteriors of all rows, and sets the tables with ``fit_...="em"`` and the
    class probabilities ``"em"`` to the maximum of the expected log-likelihood. This never decreases the
    likelihood, except with ``pooled`` covariances between 0 and 1. Rows are encoded once, in evaluation
    mode. Everything else stays as it is, except that the statistics of earlier steps of training are
    forgotten.

    :param model: a model with a prior or class probabilities that EM trains.
    :param x: data ``(N, *event_shape)``.
    :param y: their labels ``(N,)``, -1 where unknown. By default all are unknown.
    :param int iterations: the most iterations.
    :param float tolerance: change by an iteration, in nats per row, below which EM ends.
    :param int batch_size: rows scored at a time.
    :return: the log-likelihood in nats per row, before the first iteration and after each. A labelled row
        counts ``labelled_weight`` times :math:`\log p(x, y)`, another one :math:`\log p(x)`.
    :raises ValueError: if EM trains nothing of the model, or a table is a random site; for no rows, for
        numbers out of range, for data or labels that the model refuses, or for a label whose class has
        probability 0.

    Reference: Izmailov et al., *FlowGMM*, 2020, Appendices A and B.
    """
    check_at_least(1, iterations=iterations, batch_size=batch_size)
    tolerance = check_number("tolerance", tolerance, at_least=0)
    if not learns_by_em(model):
        raise ValueError(
            "model: EM trains nothing of it; give the prior fit_means='em', fit_scales='em' or "
            "fit_weights='em', or the model class_probs='em'"
        )
    _check_plain(model)
    x = model.flow.check_data(x, "x", "fit_by_em")
    if x.shape[1:] != model.flow.event_shape or not len(x):
        raise ValueError(
            f"fit_by_em: x has shape {tuple(x.shape)}, expected (N, "
            f"{', '.join(map(str, model.flow.event_shape))}) with at least one row"
        )
    if y is None:
        y = torch.full((len(x),), UNLABELLED)
    y = check_row_labels(y, len(x), model.flow.num_classes, "fit_by_em").to(reference_tensor(model).device)
    check_possible(model.class_probs, model.balanced_labels, y, "y")
    with evaluating(model):
        try:
            encoded = [_encode(model, rows.to(y.device)) for rows in x.split(batch_size)]
            found = [_iteration(model, encoded, y)]
            for _ in range(iterations):
                for part in _trained(model):
                    part.maximise()
                found.append(_iteration(model, encoded, y))
                if abs(found[-1] - found[-2]) < tolerance:
                    break
        finally:
            _restart(model)
    return found


def _encode(model: SemiSupervisedModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of rows, and the part of their log-density that the prior says nothing of."""
    z_aux, z_f, ladj = model.flow.encode(x)
    return z_f, in_double(ladj + model.flow.aux_log_prob(z_aux))


def _iteration(model: SemiSupervisedModel, encoded: list[tuple[Tensor, Tensor]], y: Tensor) -> float:
    """The E-step of all rows. Returns their log-likelihood in nats per row."""
    _restart(model)
    prior, total = model.flow.prior, 0.0
    log_probs = in_double(model.class_probs.log_probs)
    for (z_f, others), labels in zip(encoded, y.split(len(encoded[0][0])), strict=True):
        shared, table = prior.class_scores(z_f)
        known = labels != UNLABELLED
        given, log_prior = in_double(table), log_probs.expand(len(labels), -1)
        if model.balanced_labels:
            log_prior = torch.where(known[:, None], in_double(model.uniform_log_probs), log_prior)
        joint = given + log_prior
        own = joint.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
        scores = in_double(shared) + others + torch.where(known, own, joint.logsumexp(-1))
        weight = torch.where(known, model.labelled_weight, 1.0).to(scores.dtype)
        total += float((weight * scores).sum())
        hard = one_hot(labels.clamp(min=0), joint.shape[-1]).to(joint.dtype)
        q = weight[:, None] * torch.where(known[:, None], hard, joint.softmax(-1))
        of_classes = q[~known] if model.balanced_labels else q
        Expected(z_f, q, of_classes).accumulate(model)
    return total / len(y)


def _restart(model: SemiSupervisedModel) -> None:
    for part in _trained(model):
        part.restart()
