"""Guides over the label: expectation-maximisation by stochastic gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._copies import PortableModule
from pyro_scnf._labels import log_certainty
from pyro_scnf._numbers import check_number, check_temperature
from pyro_scnf.class_probs import Categorical
from pyro_scnf.models.plates import data_plate, weigh
from pyro_scnf.models.semi_supervised import SemiSupervisedModel
from pyro_scnf.sharing import current

__all__ = ["GUIDES", "EMGuide", "exact_guide", "make_guide"]


def exact_guide(*args: object, **kwargs: object) -> None:
    """The empty guide. The model enumerates the label, and the loss is the exact marginal."""


class _Average:
    """``old <- decay * old + (1 - decay) * new``. It is a class because a closure cannot be pickled."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, old: Sequence[Tensor], new: Sequence[Tensor], count: Tensor | int) -> None:
        for before, now in zip(old, new, strict=True):
            if before.is_floating_point():
                before.lerp_(now.to(before.dtype), 1 - self.decay)
            else:
                before.copy_(now)


class EMGuide(PortableModule):
    r"""EM-SGD: the label posterior :math:`q(y) \propto p(y \mid x, \theta_{old})^{1/T}` as a guide.

    The E-step computes q without gradient. The M-step is one gradient step on
    :math:`-\mathbb E_q[\log p(x, y) - \log q(y)]`. With current parameters and ``estep="enumerate"``
    the gradient **equals** that of :math:`-\log p(x)` (Fisher's identity). In this case the empty guide is
    simpler. The other cases are

    * ``estep="sample"``: one label drawn from q per row. Cost and memory of the backward pass do not grow
      with the number of classes; the E-step still scores all of them, without gradient. The gradient is
      unbiased if :math:`\theta_{old}` is current.
    * ``decay``: :math:`\theta_{old}` lags behind, which stabilises the labels.
    * ``weights`` of single rows. Pyro cannot weigh the rows of a label that the model enumerates.
    * ``temperature`` and ``estep="hard"``: annealed and hard assignment.

    :param SemiSupervisedModel model: the model. The guide takes the same arguments.
    :param estep: ``"enumerate"`` sums over the labels under q, ``"sample"`` draws one, ``"hard"`` takes the
        most probable one.
    :param decay: with ``None``, :math:`\theta_{old}` is current. With a number in [0, 1), it is an
        exponential moving average of the parameters. Call :meth:`update` after each optimiser step to
        advance it. With 0, each call copies the parameters.
    :param float temperature: T above, a positive number; 1 with ``estep="hard"``.
    :raises ValueError: for an unknown ``estep``, a ``decay`` or ``temperature`` out of range, or a model that
        is no :class:`SemiSupervisedModel`.

    Labelled rows are never sampled. Under :func:`pyro_scnf.elbo` (or :func:`share_encoding`) the flow runs
    once for guide and model together, unless :math:`\theta_{old}` differs from the current parameters.

    Reference: Atanov et al., 2019, Appendix B.
    """

    def __init__(
        self,
        model: SemiSupervisedModel,
        estep: Literal["enumerate", "sample", "hard"] = "enumerate",
        *,
        decay: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if estep not in ("enumerate", "sample", "hard"):
            raise ValueError(f"estep={estep!r}: expected 'enumerate', 'sample' or 'hard'")
        if not isinstance(model, SemiSupervisedModel):
            raise ValueError(f"model is a {type(model).__name__}, expected a SemiSupervisedModel")
        temperature = check_temperature(temperature)
        if estep == "hard" and temperature != 1.0:
            raise ValueError(
                f"temperature={temperature}: the most probable label is the same at every temperature; leave "
                "it out, or take estep='enumerate' or 'sample'"
            )
        if decay is not None:
            decay = check_number("decay", decay, at_least=0, below=1)
        self.model = model
        self.estep, self.decay, self.temperature = estep, decay, temperature
        self.old: AveragedModel | None = None
        if decay is not None:
            self.old = AveragedModel(model, multi_avg_fn=_Average(decay), use_buffers=True)
            self.old.requires_grad_(False)

    def check_model(self, model: object) -> None:
        """Raise if ``model`` has another flow than the model of the guide. Class probabilities may differ."""
        if isinstance(model, SemiSupervisedModel) and model.flow is not self.model.flow:
            raise ValueError(
                "guide: this EMGuide is of a model with another flow, so its label posteriors are not those "
                "of model; give pyro_scnf.EMGuide(model)"
            )

    @torch.no_grad()
    def update(self) -> None:
        r"""Advance :math:`\theta_{old}` towards the current parameters. Does nothing without ``decay``."""
        if self.old is not None:
            self.old.update_parameters(self.model)

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        x_unlabelled: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        label_log_prior: Tensor | None = None,
        n: int | None = None,
        generator: torch.Generator | None = None,
        pairs: Tensor | None = None,
        view: Tensor | None = None,
        progress: float = 0.0,
    ) -> None:
        """Sample the missing labels from q.

        The arguments are those of the model. ``pairs``, ``view`` and ``progress`` are those of training terms
        (:func:`pyro_scnf.with_terms`). They say nothing about q.
        """
        model = self.model
        y, weights = model.check_batch(x, y, x_unlabelled, weights, n, generator)
        if x is None:
            return
        if x_unlabelled is not None:
            _, evidence = model.split_evidence(label_log_prior, len(x), len(x_unlabelled))
            model.flow.encode_together(x, x_unlabelled)
            size = model.sizes.of_unlabelled(len(x_unlabelled))
            self._label("y_unlabelled", "unlabelled", size, x_unlabelled, None, weights, evidence)
        elif y is None or bool((y == UNLABELLED).any()):
            given = None if label_log_prior is None else model.check_evidence(label_log_prior, len(x))
            size = model.sizes.of_batch(len(x), y)
            self._label("y", "data", size, x, y, weights, given)

    def _label(
        self,
        site: str,
        plate: str,
        size: int | None,
        x: Tensor,
        y: Tensor | None,
        weights: Tensor | None,
        evidence: Tensor | None,
    ) -> None:
        logits = self._log_posterior(x, evidence)
        if y is not None:
            known = log_certainty(y.clamp(min=0), logits.shape[-1], logits)
            logits = torch.where((y == UNLABELLED)[:, None], logits, known)
        with data_plate(plate, size, len(x), x.device), ExitStack() as scales:
            weigh(scales, weights)
            if self.estep == "hard":
                pyro.sample(site, _Point(logits.argmax(-1), logits.new_zeros(len(x))))
            else:
                infer: InferDict = {"enumerate": "parallel"} if self.estep == "enumerate" else {}
                pyro.sample(site, Categorical(logits=logits, validate_args=False), infer=infer)

    def _log_posterior(self, x: Tensor, evidence: Tensor | None) -> Tensor:
        r"""Normalised :math:`\log q`, ``(B, K)``, without gradient.

        The model's loss uses the same encoding, and needs its graph. If the model sums over all labels, its
        loss also needs the graph of the class table. So these are computed with their graphs.
        """
        model = self.model if self.old is None else cast(SemiSupervisedModel, self.old.module)
        shares = self.old is None and torch.is_grad_enabled() and current() is not None
        if shares:
            model.flow.encode(x)
        with torch.set_grad_enabled(shares and self.estep == "enumerate"):
            table = model.flow.class_table(x)
        with torch.no_grad():
            joint = table + (model.class_probs.log_probs if evidence is None else evidence)
            # Normalise before Categorical does so again. The joint is thousands of nats, and one
            # normalisation in float32 would leave rounding errors of that size.
            return (joint.log_softmax(-1) / self.temperature).log_softmax(-1)


class _Point(dist.Delta):
    """A Delta that scores in the dtype of its log-density.

    One of integers would score in the default dtype, and Pyro cannot contract terms of different dtypes.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        score: Tensor = super().log_prob(x)
        return score.to(self.log_density.dtype)


GUIDES = ("exact", "em", "em-sample", "em-hard", "em-ema")
"""Guides by name; ``em-ema`` is EM with a lagged posterior (decay 0.99)."""


def make_guide(name: str, model: SemiSupervisedModel) -> EMGuide | Callable[..., None]:
    """The guide called ``name``, for ``model``.

    :param str name: one of :data:`GUIDES`.
    :return: :func:`exact_guide` or an :class:`EMGuide`.
    :raises ValueError: for an unknown name.
    """
    if name == "exact":
        return exact_guide
    if name == "em":
        return EMGuide(model)
    if name == "em-sample":
        return EMGuide(model, "sample")
    if name == "em-hard":
        return EMGuide(model, "hard")
    if name == "em-ema":
        return EMGuide(model, decay=0.99)
    raise ValueError(f"guide={name!r}: expected one of {', '.join(map(repr, GUIDES))}")
