r"""The part of a semi-conditional flow that labels do not change: data to latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from pyro_scnf import sharing
from pyro_scnf._checks import check_alike, checked
from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_temperature, refuse_unused
from pyro_scnf._random import drawing_from
from pyro_scnf._shapes import check_event, reference_tensor
from pyro_scnf.distributions import BaseNormal
from pyro_scnf.transforms import FlowTransform, MultiScale
from pyro_scnf.transforms.compose import Layer

__all__ = ["LatentFlow"]


class LatentFlow(PortableModule):
    r"""The bijection of x and :math:`[z_{aux}, z_f]`, with the distribution of :math:`z_{aux}`.

    :param transform: unconditional bijection :math:`f_w`.
    :raises ValueError: if ``transform`` is no ``FlowTransform``.
    :ivar aux: distribution of :math:`z_{aux}`. A subclass sets it. It is ``None`` if nothing is factored out.
    """

    transform: FlowTransform
    aux: BaseNormal | None

    def __init__(self, transform: Layer) -> None:
        super().__init__()
        if not isinstance(transform, FlowTransform):
            raise ValueError(
                f"transform: expected a FlowTransform (unconditional), got {type(transform).__name__}"
            )
        self.transform = transform if len(transform.base_shape) == 1 else MultiScale([transform])

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self.transform.event_shape

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of :math:`z_f`."""
        return self.transform.latent_shape

    def check_data(self, x: Tensor, name: str = "x", owner: str | None = None) -> Tensor:
        """Raise unless ``x`` holds data that this flow can score. Return them in the dtype of the flow.

        :param x: ``(*batch, *event_shape)``, floating, finite and inside the support.
        :param name: what the message calls them.
        :param owner: who complains; the class of the flow by default.
        :raises ValueError: for anything else.
        """
        return self.transform.check_data(x, name, owner or type(self).__name__)

    def encode_flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The whole latent vector ``(*batch, D)`` and the log-determinant ``(*batch,)`` in nats."""
        check_event(x, self.event_shape, "x", type(self).__name__)
        return sharing.shared("encoding", (self.transform,), self._encode, [x])[0]

    def encode_together(self, *xs: Tensor) -> None:
        """Inside :func:`share_encoding`, encode several batches ``(B_i, *event_shape)`` in one pass.

        Outside of it, this does nothing, because nothing would keep the encodings.
        """
        if sharing.can_keep((self.transform,), xs):
            sharing.shared("encoding", (self.transform,), self._encode, xs)

    def _encode(self, xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        together = torch.cat(list(xs)) if len(xs) > 1 else sharing.alias(xs[0])
        together = self.check_data(together)
        with checked():
            return self.transform.inverse_and_ladj(together)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Data to latents.

        :param x: ``(*batch, *event_shape)``.
        :return: :math:`z_{aux}` ``(*batch, aux_dim)``, :math:`z_f` ``(*batch, *latent_shape)`` and
            :math:`\log|\det \partial z / \partial x|` ``(*batch,)`` in nats.
        :raises ValueError: for a wrong shape or dtype, or values that are not finite or outside the support.
        """
        z, ladj = self.encode_flat(x)
        z_aux, z_f = z.split([self.transform.aux_dim, self.transform.latent_dim], -1)
        return z_aux, z_f.reshape(z_f.shape[:-1] + self.latent_shape), ladj

    def decode(
        self,
        z_f: Tensor,
        z_aux: Tensor | Literal["zero", "sample"] = "zero",
        temperature: float = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Latents to data.

        :param z_f: ``(*batch, *latent_shape)``.
        :param z_aux: the factored-out part ``(*batch, aux_dim)``, ``"zero"`` (its mode, which the
            paper's figures use) or ``"sample"`` (a draw from its distribution).
        :param float temperature: factor on the scale of a sampled ``z_aux``.
        :param generator: source of a sampled ``z_aux``; PyTorch's global one by default.
        :return: x ``(*batch, *event_shape)``.
        :raises ValueError: for a wrong shape, another word or a temperature that is not positive; for a
            temperature or generator if ``z_aux`` is not sampled.
        """
        owner, like = f"{type(self).__name__}.decode", reference_tensor(self)
        temperature = check_temperature(temperature)
        if not isinstance(z_aux, str) or z_aux == "zero":
            factor = temperature if isinstance(temperature, Tensor) or temperature != 1 else None
            refuse_unused("z_aux is not 'sample'", temperature=factor, generator=generator)
        batch = check_event(z_f, self.latent_shape, "z_f", owner)
        z_f = check_alike(z_f, like, owner, "z_f")
        if isinstance(z_aux, str):
            if z_aux not in ("zero", "sample"):
                raise ValueError(f"z_aux={z_aux!r}: expected a tensor, 'zero' or 'sample'")
            if z_aux == "zero" or self.aux is None:
                z_aux = z_f.new_zeros(batch + (self.transform.aux_dim,))
            else:
                with drawing_from(generator, z_f.device):
                    z_aux = cast(Tensor, self.aux(batch, temperature).rsample())
        check_event(z_aux, torch.Size((self.transform.aux_dim,)), "z_aux", owner)
        z_aux = check_alike(z_aux, like, owner, "z_aux")
        flat = torch.cat([z_aux, z_f.reshape(batch + (self.transform.latent_dim,))], -1)
        return self.transform.call_and_ladj(flat)[0]

    def aux_log_prob(self, z_aux: Tensor) -> Tensor:
        r""":math:`\log p(z_{aux})`, ``(*batch,)``, in nats. It is 0 if the flow factors nothing out."""
        if self.aux is None or not z_aux.numel():
            return z_aux.new_zeros(z_aux.shape[:-1])
        return self.aux().log_prob(z_aux)
