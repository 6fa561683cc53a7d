"""PyTorch's transform methods on top of the one-pass methods."""

from __future__ import annotations

import weakref
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.distributions import Transform


class _Memo(NamedTuple):
    """The log-determinant between two tensors, and whether it was computed with gradients enabled."""

    z: weakref.ref[Tensor]
    x: weakref.ref[Tensor]
    ladj: Tensor
    with_grad: bool


class _OneShotLadj(Transform):
    """``_call``, ``_inverse`` and ``log_abs_det_jacobian`` from ``call_and_ladj`` and ``inverse_and_ladj``.

    :class:`torch.distributions.TransformedDistribution` asks for ``z = t.inv(x)`` and *then* for
    ``t.log_abs_det_jacobian(z, x)``. One pass computes both, so the log-determinant is kept for one request
    and then dropped. It is also dropped once the result of the pass is gone. PyTorch's ``cache_size=1`` keeps
    its entry for longer: it can return a stale value after an optimiser step, hold a graph in memory, or send
    a second backward pass through a freed graph.
    """

    _memo: _Memo | None = None

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define call_and_ladj")

    def inverse_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define inverse_and_ladj")

    def _remember(self, z: weakref.ref[Tensor], x: weakref.ref[Tensor], ladj: Tensor) -> None:
        self._memo = _Memo(z, x, ladj, torch.is_grad_enabled())

    def _watched(self, result: Tensor, ladj: Tensor) -> tuple[Tensor, weakref.ref[Tensor]]:
        """``result``, and a reference to it. The log-determinant is dropped when ``result`` is gone.

        The graph of a log-determinant may hold the result itself. It does not hold a view of it.
        """
        if ladj.requires_grad:
            result = result.view_as(result)
        owner = weakref.ref(self)

        def forget(gone: weakref.ref[Tensor]) -> None:
            t = owner()
            if t is not None and t._memo is not None and gone in (t._memo.z, t._memo.x):
                t._memo = None

        return result, weakref.ref(result, forget)

    def _recall(self, z: Tensor, x: Tensor) -> Tensor | None:
        memo, self._memo = self._memo, None
        if memo is None or memo.z() is not z or memo.x() is not x:
            return None
        if torch.is_grad_enabled() and not memo.with_grad:
            return None
        return memo.ladj

    def _call(self, z: Tensor) -> Tensor:
        x, ladj = self.call_and_ladj(z)
        x, reference = self._watched(x, ladj)
        self._remember(weakref.ref(z), reference, ladj)
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        z, ladj = self.inverse_and_ladj(x)
        z, reference = self._watched(z, ladj)
        self._remember(reference, weakref.ref(x), -ladj)
        return z

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        """:math:`\\log|\\det \\partial x / \\partial z|` in nats, shape ``(*batch,)``."""
        ladj = self._recall(z, x)
        return -self.inverse_and_ladj(x)[1] if ladj is None else ladj

    def with_cache(self, cache_size: int = 1) -> Self:
        return self

    def clear_cache(self) -> None:
        self._memo = None

    def __getstate__(self) -> dict[str, object]:
        # A copy or a file holds neither the memo, which keeps a graph, nor the inverse, which is made anew.
        state = dict(super().__getstate__())
        state.pop("_memo", None)
        state["_inv"] = None
        return state
