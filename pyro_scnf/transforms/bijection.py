"""What every layer shares: event shapes, the two one-pass methods and compilation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_scnf._checks import check_alike, check_data, validation_kept
from pyro_scnf._copies import PortableModule
from pyro_scnf._shapes import as_event_shape, check_event

__all__ = ["Bijection"]


def _real(event_dim: int) -> constraints.Constraint:
    return constraints.independent(constraints.real, event_dim)


class Bijection(PortableModule):
    """An invertible map with a fixed event shape on each side.

    The forward direction goes from the *base* side (nearer the latent) to the *data* side, as in all
    transforms of :mod:`pyro.distributions.transforms`. Scoring data runs the inverse.

    :ivar torch.Size event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``.
    :ivar torch.Size base_shape: shape of its image on the base side.
    """

    event_shape: torch.Size
    base_shape: torch.Size
    bijective = True

    def _set_shapes(
        self, event_shape: Sequence[int] | int, base_shape: Sequence[int] | int | None = None
    ) -> None:
        self.event_shape = as_event_shape(event_shape)
        self.base_shape = self.event_shape if base_shape is None else as_event_shape(base_shape, "base_shape")

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of the deepest latent :math:`z_f`: the whole base, unless the layer factors parts out."""
        return self.base_shape

    @property
    def latent_dim(self) -> int:
        """Number of components of :math:`z_f`."""
        return self.latent_shape.numel()

    @property
    def aux_dim(self) -> int:
        """Number of factored-out components :math:`z_{aux}`. They come first in the base vector."""
        return self.base_shape.numel() - self.latent_dim

    @property
    def domain(self) -> constraints.Constraint:
        return _real(len(self.base_shape))

    @property
    def codomain(self) -> constraints.Constraint:
        return _real(len(self.event_shape))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._swap(shape, self.base_shape, self.event_shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._swap(shape, self.event_shape, self.base_shape)

    def _swap(self, shape: torch.Size, old: torch.Size, new: torch.Size) -> torch.Size:
        shape = torch.Size(shape)
        if shape[len(shape) - len(old) :] != old:
            raise ValueError(f"{type(self).__name__}: shape {tuple(shape)} does not end in {tuple(old)}")
        return shape[: len(shape) - len(old)] + new

    # -- what a layer defines ------------------------------------------------------------------
    # ``context`` is empty in an unconditional layer and holds one tensor in a conditional one. Both
    # kinds can therefore share the code of their maths.
    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define _forward_ladj")

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define _inverse_ladj")

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        """Set data-dependent parameters from ``x``. Return the latents that ``x`` has afterwards."""
        return self._inverse_ladj(x, *context)[0]

    def _like(self) -> Tensor | None:
        """A parameter of the layer, or else a floating buffer: data have its dtype and its device."""
        own = chain(self.parameters(), self.buffers())
        return next((tensor for tensor in own if tensor.is_floating_point()), None)

    def check_data(self, x: Tensor, name: str = "x", owner: str | None = None) -> Tensor:
        """Raise unless ``x`` holds data that this layer can score. Return them in the dtype of the layer.

        :param x: ``(*batch, *event_shape)``, floating, finite and inside the codomain.
        :param name: what the message calls them.
        :param owner: who complains; the class of the layer by default.
        :raises ValueError: for anything else.
        """
        like = self._like()
        return check_data(x, self.event_shape, like, self.codomain, owner or type(self).__name__, name)

    def _check_latents(self, z: Tensor) -> Tensor:
        """Raise unless ``z`` holds latents of this layer. Return them in its dtype."""
        owner = type(self).__name__
        check_event(z, self.base_shape, "z", owner)
        return check_alike(z, self._like(), owner, "z")

    def _check_batch(self, x: Tensor) -> Tensor:
        """Raise unless ``x`` also has a batch dimension, and at least one row."""
        owner = f"{type(self).__name__}.initialize"
        x = self.check_data(x, owner=owner)
        if x.dim() == len(self.event_shape):
            raise ValueError(f"{owner}: x needs a batch dimension, got one event")
        if not x.numel():
            raise ValueError(f"{owner}: x has no rows, shape {tuple(x.shape)}")
        return x

    # -- compilation ---------------------------------------------------------------------------
    _compiled: Callable[..., tuple[Tensor, Tensor]] | None = None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the direction that scores data, in place. Arguments go to :func:`torch.compile`.

        The compiled part is a pure function of parameters and data, never the Pyro model around it. A copy
        or a file of the layer holds the layer alone, without the compiled function.
        """
        with validation_kept():
            self._compiled = torch.compile(self._inverse_ladj, *args, **kwargs)

    def _score(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_inverse_ladj`, compiled if :meth:`compile` was called."""
        if self._compiled is None:
            return self._inverse_ladj(x, *context)
        with validation_kept():
            return self._compiled(x, *context)

    def __getstate__(self) -> dict[str, object]:
        state = super().__getstate__()
        state.pop("_compiled", None)
        return state
