r"""The distribution :math:`p(x \mid y)` of a semi-conditional flow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_scnf import sharing
from pyro_scnf._during import during
from pyro_scnf._shapes import check_event, in_double
from pyro_scnf._state import State
from pyro_scnf.distributions import ConcatDistribution, Transformed, check_expansion
from pyro_scnf.transforms import FlowTransform
from pyro_scnf.transforms.one_shot import _OneShotLadj

__all__ = ["GivenLabel", "scored_in_double"]


_IN_DOUBLE: ContextVar[bool] = ContextVar("in_double", default=False)


def scored_in_double() -> AbstractContextManager[None]:
    """A block in which log-probabilities out of class tables are sums in double precision.

    In float32, the sum of what labels share and of what tells them apart rounds the latter.
    """
    return during(_IN_DOUBLE, True)


def _sum(rows: Tensor, common: Tensor) -> Tensor:
    return in_double(rows) + in_double(common) if _IN_DOUBLE.get() else rows + common


class _Flow(Protocol):
    """What :class:`GivenLabel` uses of a :class:`~pyro_scnf.SemiConditionalFlow`.

    That class imports this module, so this module cannot import that class.
    """

    transform: FlowTransform

    @property
    def num_classes(self) -> int: ...
    def state_of_prior(self, covariates: Tensor | None = None) -> State | None: ...
    def base(self, y: Tensor, temperature: float, covariates: Tensor | None = None) -> ConcatDistribution: ...
    def encode_flat(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def scores(self, *xs: Tensor, covariates: Tensor | None = None) -> list[tuple[Tensor, Tensor]]: ...
    def find_scores(self, x: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor] | None: ...


class _Decoder(_OneShotLadj):
    """The bijection in the distributions that :meth:`SemiConditionalFlow.condition` returns.

    It is the flow of ``owner``. Its inverse takes part in :func:`~pyro_scnf.share_encoding`.
    """

    bijective = True

    def __init__(self, owner: _Flow) -> None:
        super().__init__()
        self.owner = owner

    @property
    def domain(self) -> constraints.Constraint:
        return self.owner.transform.domain

    @property
    def codomain(self) -> constraints.Constraint:
        return self.owner.transform.codomain

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.owner.transform.call_and_ladj(z)

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.owner.encode_flat(x)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.owner.transform.forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.owner.transform.inverse_shape(shape)


class GivenLabel(Transformed):
    r""":math:`p(x \mid y)` or :math:`p(x \mid y, c)`, which :meth:`SemiConditionalFlow.condition` returns.

    It takes part in :func:`~pyro_scnf.share_encoding`, also after the model that made it has returned.
    """

    def __init__(self, owner: _Flow, y: Tensor, temperature: float, covariates: Tensor | None = None) -> None:
        base = owner.base(y, temperature, covariates)
        self.owner, self.covariates, self.block = owner, covariates, sharing.current()
        self.state = None if self.block is None else owner.state_of_prior(covariates)
        # A class table has no row for other temperatures, for relaxed labels (whose last dimension is none of
        # the batch), or for parameters with a batch. A temperature that is a tensor may have a gradient.
        self.has_row = not (isinstance(temperature, Tensor) or temperature != 1 or y.is_floating_point())
        if self.has_row:
            rows = y.shape if covariates is None else torch.broadcast_shapes(y.shape, covariates.shape[:-1])
            self.has_row = base.parts[-1].batch_shape == rows
        # The base holds what y was. A caller may write other labels into y before this scores.
        self.y = y.clone() if self.state is not None and self.has_row else y
        super().__init__(base, [_Decoder(owner)])

    def expand(self, batch_shape: Sequence[int], _instance: GivenLabel | None = None) -> GivenLabel:
        check_expansion(self, batch_shape)
        new = self._get_checked_instance(GivenLabel, _instance)
        new.owner, new.y, new.covariates, new.has_row = self.owner, self.y, self.covariates, self.has_row
        new.block, new.state = self.block, self.state
        expanded: GivenLabel = super().expand(batch_shape, _instance=new)
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`\log p(x \mid y)` in nats. The batch shapes of ``value``, of y and of covariates broadcast.

        :raises ValueError: for data that :meth:`SemiConditionalFlow.encode` refuses, or batches that do not
            broadcast.
        """
        batch = check_event(value, self.event_shape, "x", "SemiConditionalFlow.condition")
        try:
            batch = torch.broadcast_shapes(batch, self.batch_shape)
        except RuntimeError:
            given, expected = "y", "a label for each x, as integers, or a row of floating class weights"
            if self.covariates is not None:
                given, expected = "y and covariates", f"{expected}, and a row of covariates"
            raise ValueError(
                f"x has batch shape {tuple(batch)} and {given} {tuple(self.batch_shape)}, which do not "
                f"broadcast; expected {expected}"
            ) from None
        with sharing.inside(self.block):
            log_prob = self._from_table(value) if self.has_row else None
            if log_prob is None:
                z, ladj = self.owner.encode_flat(value)
                # Mixtures in half precision score in single precision, unlike the flow and p(y).
                log_prob = (self.base_dist.log_prob(z) + ladj).to(ladj.dtype)
        return log_prob.expand(batch)

    def _from_table(self, x: Tensor) -> Tensor | None:
        r""":math:`\log p(x \mid y)` out of the class table of x. ``None`` if a table does not help.

        Enumerated labels ``(K, 1, ...)`` make up the whole table. For other labels a table helps only if it
        has been computed already.
        """
        owner, y, c, batch = self.owner, self.y, self.covariates, x.shape[: x.dim() - len(self.event_shape)]
        if sharing.current() is None or self.state is None or self.state != owner.state_of_prior(c):
            return None  # prior or covariates are no longer those for which this distribution was made
        if c is not None:
            batch = torch.broadcast_shapes(batch, c.shape[:-1])
        if y.dim() > len(batch) and y.shape == (owner.num_classes, *(1,) * (y.dim() - 1)):
            ((table, common),) = owner.scores(x, covariates=c)
            rows = _sum(table.index_select(-1, y.flatten().long()).movedim(-1, 0), common)
            return rows.reshape(rows.shape[:1] + (1,) * (y.dim() - 1 - len(batch)) + batch)
        found = owner.find_scores(x, c)
        if found is None or torch.broadcast_shapes(y.shape, batch) != batch:
            return None
        table, common = found
        return _sum(table.gather(-1, y.long().expand(batch)[..., None])[..., 0], common)

    def _whole_state(self) -> dict[str, object]:
        return {**super()._whole_state(), "block": None, "state": None}  # a copy or a file holds no data
