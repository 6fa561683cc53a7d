"""Find the first term of a loss that is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_scnf.models import SemiSupervisedModel

__all__ = ["first_bad_part", "first_bad_term", "is_finite"]


@torch.no_grad()
def first_bad_term(model: SemiSupervisedModel, x: Tensor | None, x_unlabelled: Tensor | None) -> str | None:
    """The first term of the model's loss that is NaN or infinite, in words; ``None`` if all are finite.

    :param x: labelled rows, after augmentation.
    :param x_unlabelled: unlabelled rows, after augmentation.
    """
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return f"the parameter {name}"
    for kind, rows in (("labelled", x), ("unlabelled", x_unlabelled)):
        term = None if rows is None else _first_bad_term_of(model, rows)
        if term is not None:
            return term.format(kind=kind)
    return None


def _first_bad_term_of(model: SemiSupervisedModel, rows: Tensor) -> str | None:
    """The first bad term on ``rows``. ``{kind}`` in the answer stands for the kind of rows."""
    flow = model.flow
    if not is_finite(rows):
        return "the {kind} data themselves, after augment"
    z, log_det = flow.transform.inverse_and_ladj(rows)
    z_aux, z_f = z.split([flow.transform.aux_dim, flow.transform.latent_dim], -1)
    if not is_finite(log_det):
        return "the log-determinant of the flow on {kind} data"
    if not is_finite(z):
        return "the latents of {kind} data"
    if flow.aux is not None and not is_finite(flow.aux().log_prob(z_aux)):
        return "log p(z_aux) of {kind} data"
    if not is_finite(flow.prior.class_log_prob(z_f.reshape(len(z_f), *flow.latent_shape))):
        return "log p(z_f | y) of {kind} data"
    if not is_finite(model.posterior(rows).logits):
        return "log p(y | x) of {kind} data"
    return None


def first_bad_part(parts: Mapping[str, Tensor]) -> str:
    """The first part of the loss that is NaN or infinite, in words."""
    bad = (name for name, part in parts.items() if name != "nll" and not is_finite(part))
    name = next(bad, None)
    return "their sum" if name is None else f"the training term {name}"


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(torch.isfinite(value).all())
