"""The training loss of a model and a guide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.util import warn_if_nan
from torch import Tensor, nn

from pyro_scnf._shapes import no_autocast
from pyro_scnf.models.guides import exact_guide
from pyro_scnf.sharing import share_encoding

__all__ = ["elbo"]


def _leave_autocast() -> ExitStack:
    """A context without autocast, on every kind of device where it is on."""
    off = ExitStack()
    for device_type in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device_type):
            off.enter_context(no_autocast(device_type))
    return off


class _NegativeELBO(nn.Module):
    """Pyro's ``TraceEnum_ELBO``, with one encoding of the data and with sums over labels outside autocast."""

    def __init__(
        self, model: Callable[..., object], guide: Callable[..., object], max_plate_nesting: int
    ) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.elbo = TraceEnum_ELBO(max_plate_nesting=max_plate_nesting, strict_enumeration_warning=False)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        with share_encoding():
            traces = list(self.elbo._get_traces(self.model, self.guide, args, kwargs))
        # Leave autocast before summing over labels. Under autocast, products run in bfloat16, whose eight
        # significant bits are too few for a log-likelihood.
        with _leave_autocast():
            value = sum(_compute_dice_elbo(model_trace, guide_trace) for model_trace, guide_trace in traces)
        loss = -torch.as_tensor(value)  # a model without any sample site gives the number 0
        warn_if_nan(loss, "loss")
        return loss


def elbo(
    model: Callable[..., object], guide: Callable[..., object] = exact_guide, *, max_plate_nesting: int = 1
) -> nn.Module:
    r"""The negative ELBO as a module: ``loss = elbo(model)(x, y); loss.backward()``.

    With the empty guide it is the exact :math:`-\log p(x, y) - \log p(x')` of labelled and unlabelled rows,
    in nats, summed over the batch. It is the loss of Pyro's ``TraceEnum_ELBO``, with two differences: guide
    and model share one encoding of the data, and sums over labels are never in half precision.

    :param model: any Pyro model. Its parameters become parameters of the returned module.
    :param guide: empty by default; an :class:`~pyro_scnf.EMGuide` or one of your own.
    :param int max_plate_nesting: how deep the plates of the model are nested.
    :return: a module. Called with the arguments of the model, it returns the loss, a scalar.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
    >>> loss = elbo(pyro_scnf.SemiSupervisedModel(flow))
    >>> x = torch.randn(8, 2)
    >>> bool((loss(x) + flow.log_prob(x).sum()).abs() < 1e-3)
    True
    """
    return _NegativeELBO(model, guide, max_plate_nesting)
