r"""Base classes of the layers, unconditional and conditional.

A subclass defines :meth:`_forward_ladj` and :meth:`_inverse_ladj`. Each returns a value and its
log-determinant, computed in one pass. PyTorch's and Pyro's transform methods follow from these two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_scnf._checks import check_alike
from pyro_scnf._copies import Portable, PortableModule
from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import check_event, check_tensor
from pyro_scnf.transforms.bijection import Bijection
from pyro_scnf.transforms.degenerate import warn_of_degenerate
from pyro_scnf.transforms.one_shot import _OneShotLadj

__all__ = ["ConditionalFlowTransform", "ConditionalInverse", "FlowTransform"]


class FlowTransform(_OneShotLadj, Bijection, TransformModule):
    r"""Base class of the unconditional layers: an invertible map with parameters.

    :param event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``.
    :param base_shape: its shape on the latent side; the same by default.

    Inputs may have any number of leading batch dimensions, including none.
    """

    def __init__(
        self, event_shape: Sequence[int] | int, base_shape: Sequence[int] | int | None = None
    ) -> None:
        super().__init__()
        self._set_shapes(event_shape, base_shape)

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Latent to data.

        :param z: ``(*batch, *base_shape)``.
        :return: x ``(*batch, *event_shape)`` and :math:`\log|\det \partial x / \partial z|` ``(*batch,)`` in
            nats.
        :raises ValueError: if ``z`` is no tensor of the layer's dtype that ends in ``base_shape``.
        """
        return self._forward_ladj(self._check_latents(z))

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Data to latent.

        :param x: ``(*batch, *event_shape)``.
        :return: z ``(*batch, *base_shape)`` and :math:`\log|\det \partial z / \partial x|` ``(*batch,)`` in
            nats.
        :raises ValueError: if ``x`` is no floating tensor of the layer's dtype that ends in ``event_shape``,
            or if values are not finite or lie outside the codomain.
        """
        return self._score(self.check_data(x))

    def initialize(self, x: Tensor) -> Tensor:
        """Set the data-dependent parameters, such as those of :class:`ActNorm`, from a batch ``x``.

        In a chain the layer nearest the data comes first, and each layer sees the output of the one before.
        Only this method initialises a layer: a forward pass changes no state.

        :param x: ``(*batch, *event_shape)``, with at least one batch dimension.
        :return: the latents of ``x``, ``(*batch, *base_shape)``.
        :raises ValueError: for data that :meth:`inverse_and_ladj` refuses, or without rows. No parameter has
            changed then.
        """
        x = self._check_batch(x)
        warn_of_degenerate(x, len(self.event_shape))
        return self._initialize(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.clear_cache()
        return super()._apply(fn, recurse)


class _Conditioned(Portable, _OneShotLadj):
    """``layer.condition(context)``: a plain transform that owns no parameters."""

    bijective = True

    def __init__(self, layer: ConditionalFlowTransform, context: Tensor) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    def _whole_state(self) -> dict[str, object]:
        return _OneShotLadj.__getstate__(self)

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

    # The shapes include the batch of the context. A distribution over latents without a batch then expands to
    # it, and draws noise of its own for each context.
    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._with_context(self.layer.forward_shape(shape), self.layer.event_shape, "z")

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._with_context(self.layer.inverse_shape(shape), self.layer.base_shape, "x")

    def _with_context(self, shape: torch.Size, event: torch.Size, name: str) -> torch.Size:
        return self.layer._joint_batch(shape[: len(shape) - len(event)], name, self.context) + event


@ConditionalTransformModule.register
class ConditionalFlowTransform(Bijection):
    r"""Base class of the conditional layers: :meth:`condition` gives an ordinary transform.

    It is a *virtual* subclass of Pyro's ``ConditionalTransformModule``: Pyro accepts it wherever it accepts
    one. A real subclass would inherit the metaclass ``ABCMeta``, which clashes with the metaclass of
    ``PyroModule``, and a layer could not become a ``PyroModule``.

    :param event_shape: shape of one datum, ``(D,)`` or ``(C, H, W)``.
    :param int context_dim: length E of a context vector.
    :param base_shape: the datum's shape on the latent side; the same by default.

    The batch shapes of value and context *broadcast*. Parallel enumeration of K labels makes K contexts of
    shape ``(K, 1, E)``. With values of batch ``(B,)`` the result then has batch ``(K, B)``, in one pass.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        context_dim: int,
        base_shape: Sequence[int] | int | None = None,
    ) -> None:
        super().__init__()
        self._set_shapes(event_shape, base_shape)
        self.context_dim = check_whole("context_dim", context_dim, 1)

    def condition(self, context: Tensor) -> Transform:
        """The transform for one ``context`` of shape ``(*batch, context_dim)``."""
        self._check_context(context)
        return _Conditioned(self, context)

    def call_and_ladj(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowTransform.call_and_ladj`. The batch shapes of ``z`` and ``context`` broadcast."""
        return self._run(
            self._forward_ladj, self._check_latents(z), "z", self.base_shape, self.event_shape, context
        )

    def inverse_and_ladj(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowTransform.inverse_and_ladj`. The batch shapes of ``x`` and ``context`` broadcast."""
        return self._run(self._score, self.check_data(x), "x", self.event_shape, self.base_shape, context)

    def initialize(self, x: Tensor, context: Tensor) -> Tensor:
        """As :meth:`FlowTransform.initialize`, given the contexts of ``x``."""
        x = self._check_batch(x)
        self._check_context(context)
        return self._initialize(x, context)

    def _check_context(self, context: Tensor) -> torch.Size:
        """Raise unless ``context`` holds context vectors. Return its batch shape."""
        check_tensor(context, "context", type(self).__name__)
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
        """Check ``context``, apply ``method``, and expand the results to the joint batch."""
        batch = self._joint_batch(value.shape[: value.dim() - len(shape)], name, context)
        context = check_alike(context, next(self.parameters(), None), type(self).__name__, "context")
        out, ladj = method(value, context)
        # A layer may ignore the context. Its result then lacks the batch dimensions of the context.
        return out.expand(batch + out_shape), ladj.expand(batch)

    def _joint_batch(self, batch: torch.Size, name: str, context: Tensor) -> torch.Size:
        """Check ``context``. Return the batch shape of it and of the value ``name`` of shape ``batch``."""
        context_batch = self._check_context(context)
        try:
            return torch.broadcast_shapes(batch, context_batch)
        except RuntimeError:
            raise ValueError(
                f"{type(self).__name__}: batch shapes of {name} {tuple(batch)} and context "
                f"{tuple(context_batch)} do not broadcast"
            ) from None

    @property
    def inv(self) -> ConditionalInverse:
        """The same layer in the other direction, as a conditional transform."""
        return ConditionalInverse(self)


@ConditionalTransformModule.register
class ConditionalInverse(PortableModule):
    """A conditional layer turned round: from data to latent. It owns the parameters of the layer.

    :param layer: the conditional layer.
    """

    def __init__(self, layer: ConditionalFlowTransform) -> None:
        super().__init__()
        self.layer = layer

    @property
    def inv(self) -> ConditionalFlowTransform:
        """The layer itself."""
        return self.layer

    def condition(self, context: Tensor) -> Transform:
        """The transform from data to latent for one ``context`` of shape ``(*batch, context_dim)``."""
        return self.layer.condition(context).inv
