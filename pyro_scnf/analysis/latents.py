"""Decode data from changed latents: from their deepest components alone, or under another label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

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
    :raises ValueError: if the prior lacks these methods.
    """
    prior = flow.prior
    if not isinstance(prior, SwapsLabels):
        raise ValueError(
            f"flow: its prior is a {type(prior).__name__}, expected one that can encode under one label and "
            "decode under another, as prior='flow' can"
        )
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
    :raises ValueError: for a number that is out of range or not whole.

    Reference: Figure 2 of Atanov et al. (2019).
    """
    z, _ = flow.encode_flat(x)
    total = z.shape[-1]
    wrong = [number for number in kept if not (0 <= number <= total and number == int(number))]
    if wrong or not kept:
        raise ValueError(f"kept={list(kept)}: expected whole numbers of components from 0 to {total}")
    depth = torch.arange(total, 0, -1, device=z.device)  # the deepest component comes last
    deepest = torch.stack([torch.where(depth <= number, z, 0.0) for number in kept])
    return flow.transform.call_and_ladj(deepest)[0]
