"""Label probabilities of rows of data, from one or several dequantisations, at any temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._checks import check_row_labels, validating
from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import check_at_least, check_kinds, check_scale, check_word
from pyro_scnf._shapes import check_event, check_tensor, in_double, reference_tensor
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.transforms import dequantize

__all__ = [
    "Average",
    "LabelScores",
    "Prepare",
    "Scoring",
    "check_known_labels",
    "check_log_probs",
    "check_rows",
    "label_log_probs",
    "opinion_pool",
]

Average = Literal["density", "posterior"]
"""What several dequantisations of a row are averaged by."""

Prepare = Callable[[Tensor], Tensor]
"""What rows go through before they are scored, anew in each draw."""


def label_log_probs(
    model: SemiSupervisedModel,
    x: Tensor,
    *,
    temperature: float = 1.0,
    prepare: Prepare | None = None,
    bins: int | None = None,
    draws: int = 1,
    average: Average = "density",
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Log-probabilities of the labels of many rows, :math:`\log p_T(y \mid x)`.

    .. math:: p_T(y \mid x) \propto p(y)\, p(x \mid y)^{1/T}

    The temperature T divides the log-likelihood and leaves the class probabilities :math:`p(y)` as they are.
    Above 1 it makes the model less sure. If :math:`p(y)` is uniform, no temperature changes which label is
    the most probable one. Otherwise it may: the higher T is, the more :math:`p(y)` decides.

    In a Gaussian mixture with one covariance for all classes, T multiplies that covariance. It is then the
    square of the ``temperature`` of :meth:`SemiConditionalFlow.condition
    <pyro_scnf.SemiConditionalFlow.condition>`, which multiplies standard deviations.

    :param x: data ``(N, *event_shape)``; with ``bins``, integers ``0 .. bins - 1``.
    :param float temperature: T, from :func:`fit_temperature` for example. At 1 it is the model's posterior.
    :param prepare: a function of rows that adds the noise of dequantisation, ``preset.augment.prepare`` for
        example. It is called ``draws`` times. One draw of wide noise, as whole numbers get, makes
        probabilities uncertain.
    :param bins: number of grey levels of integer data. They are dequantised ``draws`` times.
    :param int draws: number of dequantisations. The temperature divides the logarithm of their average.
    :param average: how to classify with several draws. ``"density"`` averages :math:`p(x, y)`, and so
        estimates the likelihood of the discrete datum. ``"posterior"`` averages :math:`p(y \mid x)`. With
        few draws of many pixels, the most likely draw alone decides the mean density.
    :param int batch_size: rows scored at a time.
    :param generator: source of the noise of dequantisation, on the device of ``model``; PyTorch's global one
        by default.
    :return: ``(N, K)`` in nats, in double precision, on the CPU.
    :raises ValueError: for an unknown ``average``; for a ``temperature`` that is not positive; for numbers
        below 1; for several draws without ``bins`` and ``prepare``, or a ``generator`` without ``bins``; for
        data that the flow or :func:`~pyro_scnf.transforms.dequantize` refuses; for a model whose likelihoods
        are NaN or infinite.

    Reference: Guo et al., *On Calibration of Modern Neural Networks*, 2017; Izmailov et al., 2020,
    section 6.1.
    """
    temperature = check_scale("temperature", temperature)
    scoring = Scoring(prepare, bins, draws, average, batch_size, generator)
    check_rows(model, x, "label_log_probs")
    return scoring.of(model, x, "label_log_probs").at(temperature)


def opinion_pool(*log_probs: Tensor) -> Tensor:
    r"""The logarithmic opinion pool of several label probabilities of the same rows.

    .. math:: p(y \mid x) \propto \prod_{m=1}^M p_m(y \mid x)^{1/M}

    Take it for a flow and a graph that look at the same features. A product without the exponents, as in
    Bayes' rule, would count what both know twice, and be too sure. If all opinions are the same, so is their
    pool.

    :param log_probs: normalised log-probabilities ``(N, K)``, such as those of :func:`label_log_probs` and of
        :meth:`LabelEvidence.of <pyro_scnf.datasets.LabelEvidence.of>`.
    :return: ``(N, K)`` in nats, in double precision, on the CPU.
    :raises ValueError: for log-probabilities that are not normalised, or of different shapes; for none; for a
        row in which every label is impossible by one of them.

    Reference: Genest and Zidek, *Combining probability distributions*, 1986.
    """
    if not log_probs:
        raise ValueError("opinion_pool: there are no log_probs, expected one tensor (N, K) or more")
    checked = [check_log_probs(table, f"log_probs[{m}]", "opinion_pool") for m, table in enumerate(log_probs)]
    shapes = [tuple(table.shape) for table in checked]
    if len(set(shapes)) > 1:
        raise ValueError(f"opinion_pool: log_probs have the shapes {shapes}, expected the same one for all")
    mean = torch.stack(checked).mean(0)
    bad = int((mean.amax(-1) == -math.inf).sum())
    if bad:
        raise ValueError(
            f"opinion_pool: in {bad} rows each label is impossible by one of the log_probs; opinions without "
            "probabilities of 0 can be pooled"
        )
    return mean.log_softmax(-1)


@dataclass(frozen=True)
class LabelScores:
    r"""Scores of N rows under every label, in double precision, on the CPU.

    :ivar Tensor log_likelihood: :math:`\log p(x \mid y = k)` less what all labels share, ``(N, K)``.
    :ivar Tensor log_class_probs: :math:`\log p(y)`, ``(K,)``.
    :ivar Tensor log_density: :math:`\log p(x)`, ``(N,)``, averaged over the draws.
    """

    log_likelihood: Tensor
    log_class_probs: Tensor
    log_density: Tensor

    def at(self, temperature: float) -> Tensor:
        r""":math:`\log p_T(y \mid x)` ``(N, K)``, see :func:`label_log_probs`."""
        return (self.log_likelihood / temperature + self.log_class_probs).log_softmax(-1)


@dataclass(frozen=True)
class Scoring:
    """How rows are scored, with the options of :func:`label_log_probs`. It checks them."""

    prepare: Prepare | None = None
    bins: int | None = None
    draws: int = 1
    average: Average = "density"
    batch_size: int = 1000
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        bins, draws, prepare = self.bins, self.draws, self.prepare
        if prepare is not None and not callable(prepare):
            raise ValueError(
                f"prepare={prepare!r}: expected a function of rows, such as preset.augment.prepare"
            )
        check_word("average", self.average, ("density", "posterior"))
        check_at_least(1, draws=draws, batch_size=self.batch_size)
        if bins is None and prepare is None and draws > 1:
            raise ValueError(
                f"draws={draws}: without bins or prepare nothing is drawn; give one of them, or draws=1"
            )
        if bins is None and self.generator is not None:
            raise ValueError("generator: without bins nothing is drawn; give bins, or no generator")
        if bins is not None:
            check_at_least(1, bins=bins)

    @torch.no_grad()
    def of(self, model: SemiSupervisedModel, x: Tensor, owner: str) -> LabelScores:
        """Score the rows of ``x``, which :func:`check_rows` has checked."""
        flow, device = model.flow, reference_tensor(model).device
        log_class_probs = in_double(model.class_probs.log_probs)
        scored: list[tuple[Tensor, Tensor]] = []  # likelihoods (rows, K) and log p(x) (rows,) of each batch
        for rows in x.split(int(self.batch_size)):
            inputs = [self._drawn(rows.to(device)) for _ in range(self.draws)]
            with evaluating(flow):
                scores = [flow.scores(flow.check_data(r, "x", owner))[0] for r in inputs]
            table = torch.stack([in_double(table) for table, _ in scores])  # (draws, rows, K)
            common = torch.stack([in_double(common) for _, common in scores])  # (draws, rows)
            given_x = (table + log_class_probs).logsumexp(-1)
            if self.average == "density":
                # What all labels share weighs the draws, and cancels between labels.
                likelihood = (table + (common - common.amax(0))[..., None]).logsumexp(0)
                likelihood = likelihood - (likelihood + log_class_probs).logsumexp(-1, keepdim=True)
            else:
                # The posterior over p(y). A class of probability 0 has one too, for other p(y).
                likelihood = (table - given_x[..., None]).logsumexp(0) - math.log(self.draws)
            scored.append((likelihood.cpu(), (common + given_x).mean(0).cpu()))
        log_likelihood, log_density = map(torch.cat, zip(*scored, strict=True))
        bad = int((~log_likelihood.isfinite()).any(-1).sum())
        if bad:
            raise ValueError(f"{owner}: the model gives NaN or infinite likelihoods to {bad} rows of x")
        return LabelScores(log_likelihood.double(), log_class_probs.double().cpu(), log_density.double())

    def _drawn(self, rows: Tensor) -> Tensor:
        """Rows with the noise of one draw."""
        rows = rows if self.prepare is None else self.prepare(rows)
        return rows if self.bins is None else dequantize(rows, self.bins, self.generator)


def check_rows(model: SemiSupervisedModel, x: Tensor, owner: str) -> None:
    """Raise unless ``x`` has the shape ``(N, *event_shape)`` of rows of ``model``."""
    check_kinds(model=(model, SemiSupervisedModel))
    event_shape = model.flow.event_shape
    if len(check_event(x, event_shape, "x", owner)) != 1:
        raise ValueError(
            f"{owner}: x has shape {tuple(x.shape)}, expected (N, {', '.join(map(str, event_shape))})"
        )


def check_log_probs(log_probs: Tensor, name: str, owner: str) -> Tensor:
    """Raise unless these are normalised log-probabilities ``(N, K)``. Return them in double on the CPU."""
    check_tensor(log_probs, name, owner)
    if log_probs.dim() != 2 or not log_probs.shape[1] or not log_probs.is_floating_point():
        raise ValueError(
            f"{owner}: {name} has shape {tuple(log_probs.shape)} and dtype {log_probs.dtype}, expected "
            "floating log-probabilities (N, K)"
        )
    log_probs = log_probs.detach().cpu().double()
    totals = log_probs.logsumexp(-1)
    if validating(log_probs) and not bool((totals.abs() <= 1e-3).all()):
        worst = int(totals.abs().nan_to_num(nan=math.inf).argmax())
        raise ValueError(
            f"{owner}: {name} is not normalised: the probabilities of row {worst} add up to "
            f"{float(totals[worst].exp()):.4g}, expected 1; give probs.log(), or logits.log_softmax(-1)"
        )
    return log_probs


def check_known_labels(y: Tensor, rows: int, num_classes: int, owner: str) -> Tensor:
    """Raise unless ``y`` holds the label of every row, and there is one. Return it as int64 on the CPU."""
    y = check_row_labels(y, rows, num_classes, owner).cpu()
    if not len(y) or bool((y < 0).any()):
        raise ValueError(f"{owner}: y: expected at least one row, and the label of every row")
    return y
