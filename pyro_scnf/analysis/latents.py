"""Decode data from changed latents: from their deepest components alone, or under another label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_scnf._checks import check_labels
from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import check_flag, check_kinds
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["SwapsLabels", "reconstruct", "swap_labels"]


@runtime_checkable
class SwapsLabels(Protocol):
    """A prior that separates the label from the rest of :math:`z_f`, as a conditional flow does."""

    def encode(self, z_f: Tensor, y: Tensor) -> Tensor:
        """What is left of ``z_f`` once its label ``y`` is known."""

    def decode(self, z_h: Tensor, y: Tensor) -> Tensor:
        """The inverse of :meth:`encode`."""


@torch.no_grad()
def swap_labels(flow: SemiConditionalFlow, x: Tensor, y: Tensor, *, keep_aux: bool = True) -> Tensor:
    """Each datum, followed by its versions under every label.

    A datum is encoded under its own label and decoded under each label.

    :param flow: a flow whose prior has the methods of :class:`SwapsLabels`.
    :param x: data ``(B, *event_shape)``.
    :param y: their labels ``(B,)``.
    :param bool keep_aux: whether to keep the factored-out part :math:`z_{aux}`. If not, it is set to zero, as
        in Figure 4 of Atanov et al. (2019).
    :return: ``(B, 1 + K, *event_shape)``, the datum first.
    :raises ValueError: if the prior lacks these methods; for data that the flow refuses; unless there is a
        known label for each row.
    """
    check_flag(keep_aux=keep_aux)
    check_kinds(flow=(flow, SemiConditionalFlow))
    prior = flow.prior
    if not isinstance(prior, SwapsLabels):
        raise ValueError(
            f"flow: its prior is a {type(prior).__name__}, expected one that can encode under one label and "
            "decode under another, as prior='flow' can"
        )
    x = _check_rows(flow, x, "swap_labels")
    y = check_labels(y, flow.num_classes, "y", "swap_labels").to(x.device)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"swap_labels: y has shape {tuple(y.shape)}, expected ({len(x)},), a label for each row"
        )
    with evaluating(flow):
        z_aux, z_f, _ = flow.encode(x)
        style = prior.encode(z_f, y)
        shape = (len(x), flow.num_classes)
        labels = torch.arange(flow.num_classes, device=x.device).expand(shape)
        swapped = prior.decode(style[:, None].expand(*shape, *style.shape[1:]), labels)
        aux = z_aux[:, None].expand(*shape, -1)
        return torch.cat([x[:, None], flow.decode(swapped, aux if keep_aux else torch.zeros_like(aux))], 1)


@torch.no_grad()
def reconstruct(flow: SemiConditionalFlow, x: Tensor, kept: Sequence[int]) -> Tensor:
    """Data decoded from their deepest latent components alone. The other components are set to zero.

    :param x: data ``(B, *event_shape)``.
    :param kept: numbers of components to keep, each from 0 to their total D.
    :return: ``(len(kept), B, *event_shape)``.
    :raises ValueError: for a number that is out of range or not whole; for data that the flow refuses.

    Reference: Figure 2 of Atanov et al. (2019).
    """
    check_kinds(flow=(flow, SemiConditionalFlow))
    total = flow.event_shape.numel()
    numbers = kept.tolist() if isinstance(kept, Tensor) else kept
    numbers = list(numbers) if isinstance(numbers, Iterable) else []
    wrong = [n for n in numbers if isinstance(n, bool) or not isinstance(n, Integral) or not 0 <= n <= total]
    if wrong or not numbers:
        raise ValueError(f"kept={kept!r}: expected whole numbers of components from 0 to {total}")
    with evaluating(flow):
        z, _ = flow.encode_flat(_check_rows(flow, x, "reconstruct"))
        depth = torch.arange(total, 0, -1, device=z.device)  # the deepest component comes last
        deepest = torch.stack([torch.where(depth <= int(number), z, 0.0) for number in numbers])
        return flow.transform.call_and_ladj(deepest)[0]


def _check_rows(flow: SemiConditionalFlow, x: Tensor, owner: str) -> Tensor:
    """Raise unless ``x`` holds rows ``(B, *event_shape)`` that ``flow`` can encode. Return them."""
    x = flow.check_data(x, "x", owner)
    if x.dim() != len(flow.event_shape) + 1:
        raise ValueError(
            f"{owner}: x has shape {tuple(x.shape)}, expected (B, {', '.join(map(str, flow.event_shape))})"
        )
    return x
