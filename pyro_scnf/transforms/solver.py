"""Solvers of ordinary differential equations for continuous flows, and what they did.

The solvers are those of torchdiffeq. This module adds errors that tell what to try, and a record of function
evaluations and energies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor, nn

from pyro_scnf._during import during
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_flag, check_number, check_whole, check_word, refuse_unused
from pyro_scnf._shapes import is_wrapped
from pyro_scnf._spec import read_spec

__all__ = ["SOLVERS", "Energies", "SolveRecord", "Solver", "SolverError", "SolverSpec", "record_solves"]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("rk4", "midpoint", "heun3", "euler", "explicit_adams", "implicit_adams")


class SolverError(RuntimeError):
    """A solver could not go on. The message says where, with which tolerance, and what to try.

    :ivar layer: the layer whose equation it solved; ``None`` if it solved the adjoint equation.
    """

    layer: nn.Module | None = None


@dataclass(frozen=True)
class Solver:
    """A solver of torchdiffeq and its settings.

    :param str method: an adaptive one, ``"dopri5"`` (the default), ``"dopri8"``, ``"bosh3"``, ``"fehlberg2"``
        or ``"adaptive_heun"``; or one with equal steps, ``"rk4"``, ``"midpoint"``, ``"heun3"``, ``"euler"``,
        ``"explicit_adams"`` or ``"implicit_adams"``.
    :param float rtol: relative tolerance of an adaptive solver in training mode, 1e-5 by default.
    :param float atol: absolute tolerance of an adaptive solver in training mode, 1e-5 by default.
    :param float tighter: factor on both tolerances in evaluation mode, 0.1 by default.
    :param int steps: steps of a solver with equal steps, 20 by default.
    :param bool adjoint: whether to solve the adjoint equation backwards for the gradient. It needs memory for
        one evaluation, gives the gradient to the tolerance, and has no second derivatives. By default the
        gradient goes through the steps of the solver, which is exact for these steps, and faster.
    :param int max_evaluations: a solve that needs more evaluations raises :class:`SolverError`.
    :raises ValueError: for another method, a number out of range, or a setting that the method does not have.
    :raises ImportError: without torchdiffeq.
    """

    method: str = "dopri5"
    rtol: float | None = None
    atol: float | None = None
    tighter: float | None = None
    steps: int | None = None
    adjoint: bool = False
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        check_word("method", self.method, (*ADAPTIVE, *FIXED))
        for name in ("rtol", "atol", "tighter"):
            if getattr(self, name) is not None:
                below = {"at_most": 1.0} if name == "tighter" else {"below": 1.0}
                check_number(f"solver: {name}", getattr(self, name), above=0, **below)
        if self.adaptive:
            refuse_unused(
                f"{self.method} chooses its steps by the tolerances rtol and atol", steps=self.steps
            )
        else:
            reason = f"{self.method} takes equal steps; give their number as steps"
            refuse_unused(reason, rtol=self.rtol, atol=self.atol, tighter=self.tighter)
            if self.steps is not None:
                check_whole("solver: steps", self.steps, 1)
        check_flag(adjoint=self.adjoint)
        check_whole("solver: max_evaluations", self.max_evaluations, 1)
        require("torchdiffeq", "ode")

    def as_spec(self) -> dict[str, object]:
        """The solver as a mapping with the key ``name``, as files say it."""
        given = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "method"}
        return {"name": self.method, **{name: value for name, value in given.items() if value is not None}}

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its steps."""
        return self.method in ADAPTIVE

    def tolerances(self, training: bool) -> tuple[float, float]:
        """The relative and the absolute tolerance of an adaptive solver."""
        factor = 1.0 if training else (0.1 if self.tighter is None else self.tighter)
        rtol, atol = (1e-5 if value is None else value for value in (self.rtol, self.atol))
        return factor * rtol, factor * atol

    def describe(self, training: bool) -> str:
        """The solver in words, for messages."""
        if not self.adaptive:
            return f"{self.method} with {self._steps} steps"
        rtol, atol = self.tolerances(training)
        return f"{self.method} with rtol {rtol:.3g} and atol {atol:.3g}"

    @property
    def _steps(self) -> int:
        return 20 if self.steps is None else self.steps

    def solve(
        self,
        velocity: Callable[[Tensor, Tensor], Tensor],
        state: Tensor,
        *,
        training: bool,
        norm: Callable[[Tensor], Tensor],
        parameters: tuple[Tensor, ...],
        owner: str,
    ) -> Tensor:
        """The state at time 1 of the equation ``d state / ds = velocity(s, state)``.

        :param state: the state at time 0.
        :param training: which of the tolerances to take.
        :param norm: error of a state in units of its tolerance, for a tensor of the shape of ``state``.
        :param parameters: what ``velocity`` depends on; the adjoint equation gives their gradients.
        :param owner: the layer, for messages.
        """
        if is_wrapped(state):
            raise ValueError(
                f"{owner}: transforms of torch.func (vmap, grad, jacrev) cannot run a solver of torchdiffeq; "
                "give all rows as one batch, and take derivatives with torch.autograd"
            )
        if state.is_meta:  # there are only shapes
            return state + velocity(state.new_zeros(()), state)
        torchdiffeq = require("torchdiffeq", "ode")
        watched = _Watched(velocity, self, f"{owner}: {self.describe(training)}")
        times = torch.tensor([0.0, 1.0], dtype=state.dtype, device=state.device)
        options, backwards = self._options(state, norm)
        rtol, atol = self.tolerances(training)
        settings = {"rtol": rtol, "atol": atol, "method": self.method, "options": options}
        if self.adjoint:
            of_adjoint = {"adjoint_options": backwards, "adjoint_params": parameters}
            end = torchdiffeq.odeint_adjoint(watched, state, times, **settings, **of_adjoint)[-1]
        else:
            end = torchdiffeq.odeint(watched, state, times, **settings)[-1]
        watched.finish(end)
        return end

    def _options(
        self, state: Tensor, norm: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, object], dict[str, object]]:
        """The options of torchdiffeq, forwards and for the adjoint equation."""
        if not self.adaptive:
            grid = partial(_grid, self._steps)
            return {"grid_constructor": grid}, {"grid_constructor": grid}
        time = state.dtype if state.device.type == "mps" else torch.float64
        # Without step_t, the last step would go beyond the end, and be interpolated.
        one = {"dtype": time, "norm": norm, "step_t": [1.0]}
        return one, {"dtype": time, "norm": "seminorm", "step_t": [0.0]}


def _grid(steps: int, function: object, state: object, times: Tensor) -> Tensor:
    """The times of equal steps."""
    return torch.linspace(
        float(times[0]), float(times[-1]), steps + 1, dtype=times.dtype, device=times.device
    )


SOLVERS: dict[str, Callable[..., Solver]] = {name: partial(Solver, name) for name in (*ADAPTIVE, *FIXED)}
"""Solvers by name, the adaptive ones first."""

SolverSpec = str | Mapping[str, object] | Solver
"""A word of :data:`SOLVERS`, with options (``"rk4:steps=40"``), a mapping with the key ``name``, or a
:class:`Solver`."""


def make_solver(spec: SolverSpec) -> Solver:
    """The solver that ``spec`` names."""
    if isinstance(spec, Solver):
        return spec
    made = read_spec(spec, SOLVERS, "solver").make()
    if not isinstance(made, Solver):
        raise ValueError(
            f"solver={spec!r}: gives a {type(made).__name__}, expected one of {', '.join(SOLVERS)}"
        )
    return made


class _Watched:
    """A velocity whose evaluations are counted, and which stops a solve that cannot end.

    torchdiffeq calls ``callback_step`` before each step, and ``callback_step_adjoint`` before each step of
    the adjoint equation.
    """

    def __init__(self, velocity: Callable[[Tensor, Tensor], Tensor], solver: Solver, what: str) -> None:
        self.velocity, self.limit, self.what = velocity, solver.max_evaluations, what
        self.evaluations = 0  # of this solve
        self.records = _RECORDS.get()  # here, because the adjoint equation may be solved in another thread

    def __call__(self, s: Tensor, state: Tensor) -> Tensor:
        self.evaluations += 1
        for record in self.records:
            record.evaluations += 1
        if self.evaluations > self.limit:
            self._stop(s, f"more than max_evaluations={self.limit} evaluations of the velocity")
        change = self.velocity(s, state)
        if self.evaluations == 1 and not torch.isfinite(change).all():
            what = "velocity" if torch.isfinite(state).all() else "input of the layer"
            raise SolverError(f"{self.what}: the {what} is not finite")
        return change

    def callback_step(self, s: Tensor, state: Tensor, step: Tensor) -> None:
        if not torch.isfinite(state).all():
            self._stop(s, "the state is no longer finite")
        if s + step == s:
            self._stop(s, f"steps became too short, {float(step.detach()):.1e}")

    def callback_step_adjoint(self, s: Tensor, state: tuple[Tensor, ...], step: Tensor) -> None:
        if abs(float(s)) == 1:  # the equation begins at the end
            self.evaluations = 0
        if not all(bool(torch.isfinite(part).all()) for part in state):
            self._stop(s, "the adjoint state is no longer finite")
        if s + step == s:
            self._stop(s, f"steps of the adjoint equation became too short, {float(step.detach()):.1e}")

    def finish(self, end: Tensor) -> None:
        """Raise unless the final state is finite."""
        if not torch.isfinite(end).all():
            self._stop(torch.ones(()), "the state is not finite")

    def _stop(self, s: Tensor, cause: str) -> None:
        share = abs(float(s.detach()))
        raise SolverError(
            f"{self.what}: stopped after the share {share:.3g} of the time and {self.evaluations} "
            f"evaluations: {cause}. The velocity may have become too steep. Try a lower learning rate, "
            "weight decay, the training term 'energy', looser tolerances, double precision, or equal steps "
            "(solver='rk4:steps=40')"
        )


# -- what the solves in a block did ----------------------------------------------------------------
@dataclass
class Energies:
    r"""Energies of the paths of the rows of one solve, ``(*batch,)`` each.

    :ivar Tensor kinetic: :math:`T \int_0^T \lVert f \rVert^2 dt`.
    :ivar Tensor jacobian: :math:`T \int_0^T \lVert \partial f / \partial z \rVert_F^2 dt`, estimated without
        bias where the divergence is.

    The factor T makes them the same for every T that gives the same paths.
    """

    kinetic: Tensor
    jacobian: Tensor


@dataclass
class SolveRecord:
    """What the solves within a block of :func:`record_solves` did.

    :ivar int evaluations: evaluations of velocities, those of adjoint equations included.
    :ivar bool with_energies: whether the solves also integrate the energies of their paths.
    :ivar list energies: these, one entry for each solve.
    """

    evaluations: int = 0
    with_energies: bool = False
    energies: list[Energies] = field(default_factory=list)


_RECORDS: ContextVar[tuple[SolveRecord, ...]] = ContextVar("solve_records", default=())


def record_solves(*, energies: bool = False) -> AbstractContextManager[SolveRecord]:
    """A block that records what all continuous flows do within it.

    :param bool energies: whether to integrate the energies of the paths, too. It costs little.

    >>> layer = pyro_scnf.transforms.ContinuousFlow(2, pyro_scnf.nn.Dynamics(2))
    >>> with record_solves() as record:
    ...     z, ladj = layer.inverse_and_ladj(torch.randn(8, 2))
    >>> record.evaluations > 10
    True
    """
    check_flag(energies=energies)
    return _recording(SolveRecord(with_energies=energies))


@contextmanager
def _recording(record: SolveRecord) -> Iterator[SolveRecord]:
    with during(_RECORDS, (*_RECORDS.get(), record)):
        yield record


def records_of_energies() -> list[SolveRecord]:
    """The records around that ask for energies."""
    return [record for record in _RECORDS.get() if record.with_energies]
