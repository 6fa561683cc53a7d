"""The training loss of a model and a guide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_scnf._shapes import no_autocast
from pyro_scnf.models.guides import exact_guide
from pyro_scnf.sharing import share_encoding

__all__ = ["elbo"]


class _EnumELBO(TraceEnum_ELBO):
    """Autocast ends where log-probabilities are there: in bfloat16, which it has products done in, summing
    over labels would round the loss and the posterior to eight bits."""

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return model if isinstance(model, list) else super()._get_traces(model, guide, args, kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        traces = list(self._get_traces(model, guide, args, kwargs))
        with _no_autocast():
            return super().differentiable_loss(traces, None)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        traces = list(self._get_traces(model, guide, args, kwargs))
        with _no_autocast():
            return super().loss(traces, None)


def _no_autocast() -> ExitStack:
    """Autocast off wherever it is on."""
    off = ExitStack()
    for device_type in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device_type):
            off.enter_context(no_autocast(device_type))
    return off


class _SharedLoss(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with share_encoding():
            if torch.is_grad_enabled():
                return self.loss(*args, **kwargs)
            # Pyro's differentiable loss insists on a graph; a validation loss has none.
            loss = cast(Any, self.loss)
            value = loss.elbo.loss(loss.model, loss.guide, *args, **kwargs)
        inputs = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point())
        like = next(inputs, torch.zeros(()))
        return like.new_tensor(value)


def elbo(
    model: Callable[..., Any], guide: Callable[..., Any] = exact_guide, *, max_plate_nesting: int = 1
) -> nn.Module:
    r"""The negative ELBO as a module: ``loss = elbo(model)(x, y); loss.backward()``.

    With the empty guide it is the exact :math:`-\log p(x, y) - \log p(x')` of labelled and unlabelled
    rows, in nats, summed over the batch. It is Pyro's ``TraceEnum_ELBO`` with two things settled:
    labels are enumerated, and guide and model share one encoding of the data.

    :param model: any Pyro model; its parameters become those of the returned module.
    :param guide: empty by default; an :class:`~pyro_scnf.EMGuide` or your own.
    :param int max_plate_nesting: depth of plates in the model.

    >>> flow = pyro_scnf.SemiConditionalFlow(pyro_scnf.flows.glow((2,), steps=1), "gmm", 3)
    >>> loss = elbo(pyro_scnf.SemiSupervisedModel(flow))
    >>> x = torch.randn(8, 2)
    >>> bool((loss(x) + flow.log_prob(x).sum()).abs() < 1e-3)
    True
    """
    loss: Any = _EnumELBO(max_plate_nesting=max_plate_nesting, strict_enumeration_warning=False)
    return _SharedLoss(loss(model, guide))
