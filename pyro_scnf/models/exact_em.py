"""Exact expectation-maximisation on all data, with the flow held fixed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_scnf._checks import UNLABELLED, check_row_labels
from pyro_scnf._labels import stratified_folds
from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import check_at_least, check_number
from pyro_scnf._shapes import in_double, reference_tensor
from pyro_scnf.models.arguments import check_possible
from pyro_scnf.models.em import Expected, check_plain, learns_by_em, trained_by_em
from pyro_scnf.models.semi_supervised import SemiSupervisedModel

__all__ = ["fit_by_em", "held_out_scores"]

_Encoded = tuple[Tensor, Tensor]


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
    check_plain(model)
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
            return _iterate(model, _encoded(model, x, y, batch_size), y, iterations, tolerance)
        finally:
            _restart(model)


@torch.no_grad()
def held_out_scores(
    model: SemiSupervisedModel, x: Tensor, y: Tensor, *, folds: int, iterations: int, batch_size: int
) -> Tensor:
    r"""What the tables would say of labelled rows if these had no label.

    Labelled rows are divided into parts, each class as evenly as possible. For each part, EM goes on from the
    tables that the model has, in a copy and with the flow held fixed. The first iteration leaves the rows of
    the part out, so that tables no longer hold their labels. The others take them as unlabelled rows.

    :param x: data ``(N, *event_shape)`` that ``model`` accepts.
    :param y: their labels ``(N,)``, -1 where unknown, on the device of ``model``.
    :param int folds: number of parts.
    :param int iterations: iterations of EM for each part, after the first.
    :param int batch_size: rows scored at a time.
    :return: :math:`\log p(x \mid y = k)` of the L labelled rows, in their order, less what all labels share,
        ``(L, K)`` in double precision.
    """
    check_plain(model)
    part = stratified_folds(y, folds)
    with evaluating(model):
        encoded = _encoded(model, x, y, batch_size)
        z_f = torch.cat([latents for latents, _ in encoded])
        found = torch.zeros(len(y), model.flow.num_classes, dtype=torch.float64, device=y.device)
        for hidden in (part == fold for fold in range(folds)):
            if bool(hidden.any()):
                other = copy.deepcopy(model)
                if not bool(hidden.all()):
                    _iterate(other, *_kept(encoded, y, ~hidden), iterations=1, tolerance=0.0)
                _iterate(other, encoded, y.masked_fill(hidden, UNLABELLED), iterations, tolerance=0.0)
                found[hidden] = other.flow.prior.class_scores(z_f[hidden])[1].double()
    return found[y != UNLABELLED]


def _encoded(model: SemiSupervisedModel, x: Tensor, y: Tensor, batch_size: int) -> list[_Encoded]:
    """The latents of batches of rows, and the part of their log-density that the prior says nothing of."""
    found = []
    for rows in x.split(batch_size):
        z_aux, z_f, ladj = model.flow.encode(rows.to(y.device))
        found.append((z_f, in_double(ladj + model.flow.aux_log_prob(z_aux))))
    return found


def _kept(encoded: list[_Encoded], y: Tensor, mask: Tensor) -> tuple[list[_Encoded], Tensor]:
    """The latents and labels of some rows."""
    masks = mask.split(len(encoded[0][0]))
    kept = [(z_f[m], others[m]) for (z_f, others), m in zip(encoded, masks, strict=True) if bool(m.any())]
    return kept, y[mask]


def _iterate(
    model: SemiSupervisedModel, encoded: list[_Encoded], y: Tensor, iterations: int, tolerance: float
) -> list[float]:
    """The log-likelihood in nats per row, before the first iteration of EM and after each."""
    found = [_iteration(model, encoded, y)]
    for _ in range(iterations):
        for part in trained_by_em(model):
            part.maximise()
        found.append(_iteration(model, encoded, y))
        if abs(found[-1] - found[-2]) < tolerance:
            break
    return found


def _iteration(model: SemiSupervisedModel, encoded: list[_Encoded], y: Tensor) -> float:
    """The E-step of all rows. Returns their log-likelihood in nats per row."""
    _restart(model)
    prior, total = model.flow.prior, 0.0
    log_probs = in_double(model.class_probs.log_probs)
    for (z_f, others), labels in zip(encoded, y.split([len(z_f) for z_f, _ in encoded]), strict=True):
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
    for part in trained_by_em(model):
        part.restart()
