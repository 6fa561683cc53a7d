r"""What every layer shares: shapes, one-pass log-determinants and Pyro's transform protocol.

A layer maps a *base* event (nearer the latent) to a *data* event in its forward direction, as
everywhere in :mod:`pyro.distributions.transforms`; scoring data runs the inverse. Subclasses
define :meth:`_forward_ladj` and :meth:`_inverse_ladj`, each giving a value and its
log-determinant in one pass; all that PyTorch and Pyro ask of a transform follows from the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_scnf._shapes import as_event_shape, check_event

__all__ = ["ConditionalFlowTransform", "FlowTransform"]


def _real(event_dim: int) -> constraints.Constraint:
    return constraints.independent(constraints.real, event_dim)


class _Shaped:
    """Fixed event shapes on both sides of a bijection.

    :ivar torch.Size event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``.
    :ivar torch.Size base_shape: shape of its image on the latent side.
    """

    event_shape: torch.Size
    base_shape: torch.Size
    bijective = True

    def _set_shapes(self, event_shape: Any, base_shape: Any = None) -> None:
        self.event_shape = as_event_shape(event_shape)
        self.base_shape = as_event_shape(base_shape or event_shape, "base_shape")

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of the deepest latent :math:`z_f` (all of the base unless parts are factored out)."""
        return self.base_shape

    @property
    def latent_dim(self) -> int:
        """Number of components of :math:`z_f`."""
        return self.latent_shape.numel()

    @property
    def aux_dim(self) -> int:
        """Number of factored-out components :math:`z_{aux}`, which come first in the base vector."""
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
    # ``context`` is empty for unconditional layers and one tensor for conditional ones, so that
    # a layer's maths is written once for both.
    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define _forward_ladj")

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define _inverse_ladj")

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        """Set data-dependent parameters from ``x``; return the latents of ``x`` after that."""
        return self._inverse_ladj(x, *context)[0]

    # -- compilation ---------------------------------------------------------------------------
    _compiled: Callable[..., tuple[Tensor, Tensor]] | None = None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the direction that scores data, in place; arguments go to :func:`torch.compile`.

        A pure function of parameters and data is compiled, never the Pyro model around it. Copies and
        files hold the layer as it was.
        """
        self._compiled = torch.compile(self._inverse_ladj, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()  # type: ignore[attr-defined]
        state.pop("_compiled", None)
        return state


class _OneShotLadj:
    """Pyro's ``_call`` / ``_inverse`` / ``log_abs_det_jacobian`` over the one-pass methods.

    :class:`torch.distributions.TransformedDistribution` asks for ``z = t.inv(x)`` and *then* for
    ``t.log_abs_det_jacobian(z, x)``. One pass gives both, so the log-determinant is kept until it
    is asked for once. Unlike ``cache_size=1`` nothing outlives that: no stale value after an
    optimiser step, no pinned graph, no second backward through a freed one.
    """

    _memo: tuple | None = None

    def _remember(self, z: Tensor, x: Tensor, ladj: Tensor) -> None:
        self._memo = (weakref.ref(z), weakref.ref(x), ladj, torch.is_grad_enabled())

    def _recall(self, z: Tensor, x: Tensor) -> Tensor | None:
        memo, self._memo = self._memo, None
        if memo is None or memo[0]() is not z or memo[1]() is not x:
            return None
        if torch.is_grad_enabled() and not memo[3]:
            return None
        return memo[2]

    def _call(self, z: Tensor) -> Tensor:
        x, ladj = self.call_and_ladj(z)  # type: ignore[attr-defined]
        self._remember(z, x, ladj)
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        z, ladj = self.inverse_and_ladj(x)  # type: ignore[attr-defined]
        self._remember(z, x, -ladj)
        return z

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        """:math:`\\log|\\det \\partial x / \\partial z|` in nats, shape ``(*batch,)``."""
        ladj = self._recall(z, x)
        return -self.inverse_and_ladj(x)[1] if ladj is None else ladj  # type: ignore[attr-defined]

    def with_cache(self, cache_size: int = 1) -> Any:
        return self

    def clear_cache(self) -> None:
        self._memo = None


class FlowTransform(_OneShotLadj, _Shaped, TransformModule):
    r"""Base class of the unconditional layers: an invertible map with parameters.

    :param event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``.
    :param base_shape: its shape on the latent side; the same by default.

    Any number of leading batch dimensions is accepted, none included.
    """

    def __init__(self, event_shape: Any, base_shape: Any = None) -> None:
        super().__init__()
        self._set_shapes(event_shape, base_shape)

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Latent to data: ``z`` of shape ``(*batch, *base_shape)`` to
        :math:`(x, \log|\det \partial x / \partial z|)`, the second ``(*batch,)`` in nats.

        :raises ValueError: if ``z`` does not end in ``base_shape``.
        """
        check_event(z, self.base_shape, "z", type(self).__name__)
        return self._forward_ladj(z)

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Data to latent: ``x`` of shape ``(*batch, *event_shape)`` to
        :math:`(z, \log|\det \partial z / \partial x|)`, the second ``(*batch,)`` in nats.

        :raises ValueError: if ``x`` does not end in ``event_shape``.
        """
        check_event(x, self.event_shape, "x", type(self).__name__)
        return (self._compiled or self._inverse_ladj)(x)

    def initialize(self, x: Tensor) -> Tensor:
        """Set the data-dependent parameters (:class:`ActNorm` and the like) from a batch ``x``.

        Layers are visited from the data to the latent, each seeing what the ones before it make
        of ``x``. Nothing else ever initialises a layer: a forward pass changes no state.

        :return: the latents of ``x``.
        :raises ValueError: if ``x`` does not end in ``event_shape`` or has no batch dimension.
        """
        if not check_event(x, self.event_shape, "x", type(self).__name__):
            raise ValueError(f"{type(self).__name__}.initialize: x needs a batch dimension, got one event")
        return self._initialize(x)

    def __getstate__(self) -> dict[str, Any]:
        # Neither the graph-carrying memo nor the inverse wrapper belongs in a copy or a file.
        state = dict(super().__getstate__())
        state.pop("_memo", None)
        state["_inv"] = None
        return state

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._memo = None
        return super()._apply(*args, **kwargs)


class _Conditioned(_OneShotLadj, Transform):
    """``layer.condition(context)``: a plain transform that owns no parameters."""

    bijective = True

    def __init__(self, layer: ConditionalFlowTransform, context: Tensor) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    @property
    def domain(self) -> constraints.Constraint:
        return self.layer.domain

    @property
    def codomain(self) -> constraints.Constraint:
        return self.layer.codomain

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.call_and_ladj(z, self.context)

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.inverse_and_ladj(x, self.context)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.layer.forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.layer.inverse_shape(shape)


@ConditionalTransformModule.register
class ConditionalFlowTransform(_Shaped, nn.Module):
    r"""Base class of the conditional layers: :meth:`condition` gives an ordinary transform.

    A *virtual* subclass of Pyro's ``ConditionalTransformModule``: Pyro accepts it wherever it
    accepts one, and, there being no metaclass to clash, it can also become a ``PyroModule``.

    :param event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``.
    :param int context_dim: length of a context vector.
    :param base_shape: the datum's shape on the latent side; the same by default.

    The batch shapes of value and context *broadcast*. With K contexts of shape ``(K, 1, E)``,
    which is what parallel enumeration makes of K labels, and values of batch ``(B,)`` the result
    has batch ``(K, B)``, in one pass.
    """

    def __init__(self, event_shape: Any, context_dim: int, base_shape: Any = None) -> None:
        super().__init__()
        self._set_shapes(event_shape, base_shape)
        if context_dim < 1:
            raise ValueError(f"context_dim={context_dim}: expected at least 1")
        self.context_dim = context_dim

    def condition(self, context: Tensor) -> Transform:
        """The transform for one ``context`` of shape ``(*batch, context_dim)``."""
        self._check_context(context)
        return _Conditioned(self, context)

    def call_and_ladj(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowTransform.call_and_ladj`; batch shapes of ``z`` and ``context`` broadcast."""
        return self._run(self._forward_ladj, z, "z", self.base_shape, self.event_shape, context)

    def inverse_and_ladj(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowTransform.inverse_and_ladj`; batch shapes of ``x`` and ``context`` broadcast."""
        method = self._compiled or self._inverse_ladj
        return self._run(method, x, "x", self.event_shape, self.base_shape, context)

    def initialize(self, x: Tensor, context: Tensor) -> Tensor:
        """As :meth:`FlowTransform.initialize`, given the contexts of ``x``."""
        if not check_event(x, self.event_shape, "x", type(self).__name__):
            raise ValueError(f"{type(self).__name__}.initialize: x needs a batch dimension, got one event")
        self._check_context(context)
        return self._initialize(x, context)

    def _check_context(self, context: Tensor) -> torch.Size:
        if not context.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: context has dtype {context.dtype}, expected a floating tensor; "
                "embed integer labels first (the priors do)"
            )
        return check_event(context, torch.Size((self.context_dim,)), "context", type(self).__name__)

    def _run(
        self,
        method: Callable[..., tuple[Tensor, Tensor]],
        value: Tensor,
        name: str,
        shape: torch.Size,
        out_shape: torch.Size,
        context: Tensor,
    ) -> tuple[Tensor, Tensor]:
        value_batch = check_event(value, shape, name, type(self).__name__)
        context_batch = self._check_context(context)
        try:
            batch = torch.broadcast_shapes(value_batch, context_batch)
        except RuntimeError:
            raise ValueError(
                f"{type(self).__name__}: batch shapes of {name} {tuple(value_batch)} and context "
                f"{tuple(context_batch)} do not broadcast"
            ) from None
        out, ladj = method(value, context)
        # A chain whose layers all ignore the context still owes its batch shape.
        return out.expand(batch + out_shape), ladj.expand(batch)
