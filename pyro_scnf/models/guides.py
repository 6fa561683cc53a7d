"""Guides over the label: expectation-maximisation by stochastic gradient."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_scnf._checks import UNLABELLED, check_temperature
from pyro_scnf.class_probs import log_certainty
from pyro_scnf.models.plates import data_plate, weigh
from pyro_scnf.models.semi_supervised import SemiSupervisedModel

__all__ = ["GUIDES", "EMGuide", "exact_guide", "make_guide"]


def exact_guide(*args: Any, **kwargs: Any) -> None:
    """The empty guide: the model enumerates the label, and the loss is the exact marginal."""


class _Average:
    """``old <- decay * old + (1 - decay) * new``; a class, since a closure could not be pickled."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, old: Any, new: Any, count: Any) -> None:
        for before, now in zip(old, new, strict=True):
            if before.is_floating_point():
                before.lerp_(now.to(before.dtype), 1 - self.decay)
            else:
                before.copy_(now)


class EMGuide(nn.Module):
    r"""EM-SGD: the label posterior :math:`q(y) \propto p(y \mid x, \theta_{old})^{1/T}` as a guide.

    The E-step computes q without gradient, the M-step is one gradient step on
    :math:`-\mathbb E_q[\log p(x, y) - \log q(y)]`. With current parameters and ``estep="enumerate"``
    the gradient **equals** that of :math:`-\log p(x)` (Fisher's identity), so this buys nothing over
    the exact marginal. It is worth having for

    * ``estep="sample"``: one label drawn from q per row. Memory and backward cost do not grow with
      the number of classes; unbiased while parameters are current.
    * ``decay``: :math:`\theta_{old}` lags behind, which stabilises the labels.
    * ``weights`` of single rows, which model-side enumeration cannot have.
    * ``temperature`` and ``estep="hard"``: annealed and hard assignment.

    :param SemiSupervisedModel model: the model; the guide is called with its arguments.
    :param estep: ``"enumerate"`` the labels under q, ``"sample"`` one, or take the most probable one
        (``"hard"``).
    :param decay: ``None`` keeps :math:`\theta_{old}` current; a number in [0, 1) makes it an
        exponential moving average, advanced by :meth:`update`, which you call after each optimiser
        step (0 copies the parameters at each call).
    :param float temperature: T above.
    :raises ValueError: for an unknown ``estep``, or a ``decay`` or ``temperature`` out of range.

    Labelled rows are never sampled. Under :func:`pyro_scnf.elbo` (or :func:`share_encoding`) guide
    and model together run the flow once, unless :math:`\theta_{old}` is another one.

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
        check_temperature(temperature)
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected None or 0 <= decay < 1")
        self.model = model
        self.estep, self.decay, self.temperature = estep, decay, temperature
        self.old: AveragedModel | None = None
        if decay is not None:
            self.old = AveragedModel(model, multi_avg_fn=_Average(decay), use_buffers=True)
            self.old.requires_grad_(False)

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
        pairs: Tensor | None = None,
        n: int | None = None,
    ) -> None:
        """Sample the missing labels from q; the arguments are those of the model."""
        model = self.model
        y = model.check_batch(x, y, x_unlabelled, weights)
        if x_unlabelled is not None:
            model.flow.encode_together(x, x_unlabelled)  # type: ignore[arg-type]
            self._label("y_unlabelled", "unlabelled", model.num_unlabelled, x_unlabelled, None, weights)
        elif x is not None and (y is None or bool((y == UNLABELLED).any())):
            self._label("y", "data", model.num_data, x, y, weights)

    def _label(
        self, site: str, plate: str, size: int | None, x: Tensor, y: Tensor | None, weights: Tensor | None
    ) -> None:
        logits = self._log_posterior(x)
        if y is not None:
            known = log_certainty(y.clamp(min=0), logits.shape[-1], logits)
            logits = torch.where((y == UNLABELLED)[:, None], logits, known)
        with data_plate(plate, size, len(x), x.device), ExitStack() as scales:
            weigh(scales, weights)
            if self.estep == "hard":
                # Given its density, a Delta of integers takes the dtype of that: Pyro contracts terms of one.
                pyro.sample(site, dist.Delta(logits.argmax(-1), logits.new_zeros(len(x))))
            else:
                infer: InferDict = {"enumerate": "parallel"} if self.estep == "enumerate" else {}
                pyro.sample(site, dist.Categorical(logits=logits, validate_args=False), infer=infer)

    def _log_posterior(self, x: Tensor) -> Tensor:
        r"""Normalised :math:`\log q`, ``(B, K)``, without gradient.

        The encoding keeps its graph if it is the one that the model will share.
        """
        model = self.model if self.old is None else cast(SemiSupervisedModel, self.old.module)
        with torch.set_grad_enabled(self.old is None and torch.is_grad_enabled()):
            _, z_f, _ = model.flow.encode(x)
        with torch.no_grad():
            joint = model.flow.prior.class_log_prob(z_f.detach()) + model.class_probs.log_probs
            # Normalised twice over: Categorical alone would leave float32 rounding of the raw size.
            return (joint.log_softmax(-1) / self.temperature).log_softmax(-1)


GUIDES = ("exact", "em", "em-sample", "em-hard", "em-ema")
"""Guides by name; ``em-ema`` is EM with a lagged posterior (decay 0.99)."""


def make_guide(name: str, model: SemiSupervisedModel) -> Any:
    """The guide that ``name``, one of :data:`GUIDES`, stands for.

    :raises ValueError: for an unknown name.
    """
    if name == "exact":
        return exact_guide
    if name == "em":
        return EMGuide(model)
    if name in ("em-sample", "em-hard"):
        return EMGuide(model, name.removeprefix("em-"))  # type: ignore[arg-type]
    if name == "em-ema":
        return EMGuide(model, decay=0.99)
    raise ValueError(f"guide={name!r}: expected one of {', '.join(map(repr, GUIDES))}")
