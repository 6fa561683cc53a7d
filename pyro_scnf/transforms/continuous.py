r"""Continuous flows: an ordinary differential equation as a layer.

From data to latent, the state follows a velocity field from time 0 to :math:`T`,

.. math:: \frac{dz}{dt} = f(t, z, c), \qquad z(0) = x, \qquad
    \log\Bigl|\det \frac{\partial z(T)}{\partial x}\Bigr| = \int_0^T \operatorname{div} f(t, z(t), c)\, dt.

The log-determinant is integrated together with the state. From latent to data the equation runs backwards.

The divergence is exact, or one unbiased estimate :math:`\epsilon^T (\partial f / \partial z)\, \epsilon` with
noise :math:`\epsilon` that stays the same during a solve (Hutchinson). In the flow :math:`f_w` of a
semi-conditional flow an estimate biases nothing. The log-determinant of :math:`f_w` is the same for every
label, so its noise cancels in :math:`p(y \mid x)` and leaves :math:`\log p(x)` unbiased. In a flow that sees
the label, the noise stands inside of :math:`\log \sum_y p(y)\, p(x \mid y)`, which is not linear, and biases
it. A conditional layer therefore computes the divergence exactly unless told otherwise.

References: Grathwohl et al., *FFJORD*, 2019; Atanov et al., *Semi-Conditional Normalizing Flows*, 2019,
appendix C (conditional); Finlay et al., *How to train your neural ODE*, 2020 (energies).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pyro_scnf._numbers import check_flag, check_scale, check_word
from pyro_scnf._shapes import as_event_shape, no_autocast
from pyro_scnf.transforms.base import ConditionalFlowTransform, FlowTransform
from pyro_scnf.transforms.bijection import Bijection
from pyro_scnf.transforms.solver import Energies, SolverError, SolverSpec, make_solver, records_of_energies

__all__ = ["ConditionalContinuousFlow", "ContinuousFlow", "Divergence"]

Divergence = Literal["exact", "gaussian", "rademacher"]
DIVERGENCES = ("exact", "gaussian", "rademacher")

SMALL = 8
"""Up to this many components, the divergence of an unconditional layer is exact by default."""


class _Continuous(Bijection):
    """What the unconditional and the conditional layer share."""

    net: nn.Module
    settings: ClassVar[tuple[str, ...]] = ("solver", "divergence")

    def _set_up(
        self,
        net: nn.Module,
        solver: SolverSpec,
        divergence: Divergence | None,
        end_time: float,
        learn_end_time: bool,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise ValueError(
                f"net={net!r}: expected a velocity field (pyro_scnf.nn.Dynamics, or a module of your own)"
            )
        own = as_event_shape(getattr(net, "event_shape", self.event_shape), "net: its event_shape")
        if own != self.event_shape:
            raise ValueError(f"net: its event_shape is {tuple(own)}, expected {tuple(self.event_shape)}")
        length = self.context_dim if isinstance(self, ConditionalFlowTransform) else 0
        if getattr(net, "context_dim", length) != length:
            raise ValueError(f"net: its context_dim is {net.context_dim}, expected {length}")
        self.net, self.solver = net, make_solver(solver)
        if divergence is None:
            small = self.event_shape.numel() <= SMALL or isinstance(self, ConditionalFlowTransform)
            divergence = "exact" if small else "rademacher"
        check_word("divergence", divergence, DIVERGENCES)
        self.divergence = divergence
        check_flag(learn_end_time=learn_end_time)
        root = torch.tensor(check_scale("end_time", end_time) ** 0.5)
        if learn_end_time:
            self.root_end_time = nn.Parameter(root)
        else:
            self.register_buffer("root_end_time", root)

    @property
    def end_time(self) -> Tensor:
        """The time :math:`T` at which the latent is reached, a scalar."""
        return self.root_end_time.square()

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        return self._integrate(z, context, backwards=True)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        return self._integrate(x, context, backwards=False)

    def _integrate(
        self, value: Tensor, context: tuple[Tensor, ...], backwards: bool
    ) -> tuple[Tensor, Tensor]:
        """Solve the equation from ``value``, for all rows and contexts at once."""
        event_dim, size = len(self.event_shape), self.event_shape.numel()
        owner = f"{type(self).__name__} of event shape {tuple(self.event_shape)}"
        if torch.finfo(value.dtype).bits < 32:
            raise ValueError(
                f"{owner}: its parameters have dtype {value.dtype}, in which no solver meets its tolerances; "
                "convert the model with .float()"
            )
        batch = value.shape[: value.dim() - event_dim]
        tangents = self._tangents(value, batch)
        if context:
            batch = torch.broadcast_shapes(batch, context[0].shape[:-1])
        records = records_of_energies()
        state = value.flatten(-event_dim).expand(batch + (size,))
        state = torch.cat([state, state.new_zeros(batch + (3 if records else 1,))], -1)
        if not state.numel():
            return value.expand(batch + self.event_shape), state[..., size]
        velocity = partial(self._velocity, tangents, context, backwards, bool(records))
        try:
            with no_autocast(value.device.type):
                end = self.solver.solve(
                    velocity,
                    state,
                    training=self.training,
                    norm=partial(_worst_row, size),
                    parameters=(*self.parameters(), *context),
                    owner=owner,
                )
        except SolverError as error:
            error.layer = self
            raise
        for record in records:
            record.energies.append(Energies(end[..., size + 1], end[..., size + 2]))
        return end[..., :size].reshape(batch + self.event_shape), end[..., size]

    def _tangents(self, value: Tensor, batch: torch.Size) -> Tensor:
        """The vectors to multiply with the Jacobian: all unit vectors, or one of noise for each row.

        The noise is the same for all contexts of a row. It is ``(S, *batch, *event_shape)``.
        """
        if self.divergence == "exact":
            size = self.event_shape.numel()
            unit = torch.eye(size, dtype=value.dtype, device=value.device)
            return unit.reshape((size,) + (1,) * len(batch) + self.event_shape)
        if self.divergence == "gaussian":
            return torch.randn_like(value)[None]
        return torch.empty_like(value).bernoulli_(0.5).mul_(2).sub_(1)[None]

    def _velocity(
        self,
        tangents: Tensor,
        context: tuple[Tensor, ...],
        backwards: bool,
        energies: bool,
        s: Tensor,
        state: Tensor,
    ) -> Tensor:
        """``d state / ds``, where ``s`` is the share of the time that has passed in this solve."""
        event_dim, size = len(self.event_shape), self.event_shape.numel()
        batch = state.shape[:-1]
        end_time = self.end_time
        t = (1 - s) * end_time if backwards else s * end_time
        z = state[..., :size].reshape(batch + self.event_shape)
        while tangents.dim() < len(batch) + event_dim + 1:  # contexts add dimensions on the left
            tangents = tangents[:, None]
        velocity, products = velocity_and_products(self.net, t, z, tangents, context)
        products = products.flatten(-event_dim).expand((len(tangents), *batch, size))
        if self.divergence == "exact":
            divergence = products.diagonal(dim1=0, dim2=-1).sum(-1)
        else:
            divergence = (products * tangents.flatten(-event_dim)).sum((0, -1))
        velocity = velocity.flatten(-event_dim)
        change = (-end_time if backwards else end_time) * torch.cat([velocity, divergence[..., None]], -1)
        if not energies:
            return change
        squares = torch.stack([velocity.square().sum(-1), products.square().sum((0, -1))], -1)
        return torch.cat([change, end_time.square() * squares], -1)


def _worst_row(size: int, error: Tensor) -> Tensor:
    """Largest error of a row: the root mean square over its components, or the error of its log-determinant.

    A mean over rows would let easy rows, or easy contexts of a row, loosen the tolerance of the others. No
    gradient flows through it: the steps that follow from it are constants.
    """
    error = error.detach()
    components = error[..., :size].square().mean(-1).sqrt().amax()
    return torch.maximum(components, error[..., size].abs().amax())


def velocity_and_products(
    net: nn.Module, t: Tensor, z: Tensor, tangents: Tensor, context: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The velocity of ``net`` and the products of its Jacobian with ``tangents``, ``(S, *batch, *event)``.

    Without a method ``with_tangents``, automatic differentiation gives products with the transposed Jacobian.
    Divergence and energies are the same by these.
    """
    with_tangents: Callable[..., tuple[Tensor, Tensor]] | None = getattr(net, "with_tangents", None)
    if with_tangents is not None:
        return with_tangents(t, z, tangents, *context)
    wanted = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        t, z, tangents, *others = (_usable(each) for each in (t, z, tangents, *context))
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        velocity = _checked(net(t, z, *others), z)
        if not velocity.requires_grad:  # it depends on nothing
            return velocity, velocity.new_zeros((len(tangents), *z.shape))
        options = {"create_graph": wanted, "retain_graph": True, "materialize_grads": True}
        each = [torch.autograd.grad(velocity, z, along.expand_as(z), **options)[0] for along in tangents]
    return velocity if wanted else velocity.detach(), torch.stack(each)


def _usable(value: Tensor) -> Tensor:
    """``value``, or a copy that autograd can use if it was made in inference mode."""
    return value.clone() if value.is_inference() else value


def _checked(velocity: Tensor, z: Tensor) -> Tensor:
    """Raise unless ``velocity`` has the shape of ``z``."""
    if velocity.shape != z.shape:
        raise ValueError(f"net: gives a velocity of shape {tuple(velocity.shape)} at z of {tuple(z.shape)}")
    return velocity


class ContinuousFlow(_Continuous, FlowTransform):
    r"""A continuous flow (FFJORD), as an unconditional layer.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param net: the velocity field, called with ``(t, z)``, see :class:`~pyro_scnf.nn.Dynamics`. A module of
        your own may have a method like :meth:`~pyro_scnf.nn.Dynamics.with_tangents`. Otherwise automatic
        differentiation takes its place. It must give the same velocity each time, so no dropout.
    :param solver: a word of :data:`~pyro_scnf.transforms.SOLVERS`, with options (``"dopri5:rtol=1e-6"``), or
        a :class:`~pyro_scnf.transforms.Solver`.
    :param divergence: ``"exact"``, or estimated with ``"gaussian"`` or ``"rademacher"`` noise. By default it
        is exact for up to 8 components, and estimated with Rademacher noise beyond. An exact divergence
        multiplies the cost of an evaluation by about the number of components.
    :param float end_time: the time :math:`T`, 0.5 by default.
    :param bool learn_end_time: whether :math:`T` is a parameter.
    :raises ValueError: for an option out of range, or a ``net`` of another event shape.
    :raises ImportError: without torchdiffeq.
    :raises SolverError: while it runs, if the solver cannot go on.

    Values are those of the solver. An adaptive one keeps the error of each step within its tolerance, in
    evaluation mode within a tighter one. Equal steps keep to no tolerance. With an estimated divergence, two
    calls give different log-determinants. Single
    precision resolves about :math:`10^{-7}`. The transforms of ``torch.func``, such as ``vmap``, cannot run
    it.

    >>> layer = ContinuousFlow(2, pyro_scnf.nn.Dynamics(2))
    >>> z, ladj = layer.inverse_and_ladj(torch.randn(5, 2))
    >>> z.shape, ladj.shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        net: nn.Module,
        *,
        solver: SolverSpec = "dopri5",
        divergence: Divergence | None = None,
        end_time: float = 0.5,
        learn_end_time: bool = True,
    ) -> None:
        super().__init__(event_shape)
        self._set_up(net, solver, divergence, end_time, learn_end_time)


class ConditionalContinuousFlow(_Continuous, ConditionalFlowTransform):
    """:class:`ContinuousFlow` whose velocity field also sees a context vector.

    K contexts for each row are solved together. A step of the solver is as short as the most difficult pair
    of row and context needs. By default the divergence is exact.

    :param int context_dim: length of a context vector; ``net`` must take contexts of this length. It is
        called with ``(t, z, context)``. The batch of the context broadcasts against that of z, and may lack
        dimensions.

    See :class:`ContinuousFlow` for the other parameters and :class:`ConditionalFlowTransform` for how batch
    shapes broadcast.
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        net: nn.Module,
        *,
        context_dim: int,
        solver: SolverSpec = "dopri5",
        divergence: Divergence | None = None,
        end_time: float = 0.5,
        learn_end_time: bool = True,
    ) -> None:
        super().__init__(event_shape, context_dim)
        self._set_up(net, solver, divergence, end_time, learn_end_time)
