"""Encoding a data tensor once: an explicit, scoped memo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["share_encoding"]

_STORE: ContextVar[dict[tuple[int, int], tuple] | None] = ContextVar("pyro_scnf_encodings", default=None)


@contextmanager
def share_encoding() -> Iterator[None]:
    r"""Within this block, :math:`f_w` encodes a given data tensor once, whoever asks.

    Meant for a guide and a model that need the same encoding (EM-SGD), and for many evaluations
    with a frozen flow (NUTS over the rest of a model). :func:`pyro_scnf.elbo` opens one by itself.

    An encoding is found again only for the *same tensor object*, unchanged in place, with unchanged
    parameters, under the same gradient and autocast mode; an optimiser step therefore never meets a
    stale value. Memory of the encodings, graph included, is held until the block ends. As with any
    shared graph, call ``backward`` once per block (or keep the flow frozen).

    >>> flow = pyro_scnf.SemiConditionalFlow(pyro_scnf.flows.glow((2,), steps=1), "gmm", 3)
    >>> x = torch.randn(5, 2)
    >>> with share_encoding():
    ...     first, second = flow.encode(x)[1], flow.encode(x)[1]
    >>> first.data_ptr() == second.data_ptr()
    True
    """
    if _STORE.get() is not None:  # a block inside a block shares the outer one
        yield
        return
    token = _STORE.set({})
    try:
        yield
    finally:
        _STORE.reset(token)


def _state_of(flow: nn.Module, x: Tensor) -> tuple[Any, ...]:
    return (
        x._version,
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(x.device.type),
        tuple((id(t), t._version, _address(t)) for t in _tensors(flow)),
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers. ``Module.parameters()``, which also names them and finds repetitions, would
    take most of the time that sharing costs."""
    stack: list[nn.Module | None] = [module]
    while stack:
        module = stack.pop()  # type: ignore[assignment]
        if module is not None:
            yield from (t for t in module._parameters.values() if t is not None)
            yield from (t for t in module._buffers.values() if t is not None)
            stack.extend(module._modules.values())


def _address(t: Tensor) -> int:
    """Where a tensor's values lie; assigning to ``t.data`` moves them without counting as a change."""
    try:
        return t.data_ptr()
    except RuntimeError:  # a wrapper of torch.func has no storage, and an identity of its own
        return 0


def lookup(flow: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The shared encoding of ``x``, if a scope is open and holds a valid one."""
    entry = (_STORE.get() or {}).get((id(flow), id(x)))
    if entry is None or entry[0] is not flow or entry[1] is not x or entry[2] != _state_of(flow, x):
        return None
    return entry[3]


def store(flow: nn.Module, x: Tensor, encoding: tuple[Tensor, Tensor]) -> None:
    """Keep an encoding, if a scope is open. Inference tensors count no versions and are not kept."""
    scope = _STORE.get()
    if scope is not None and not x.is_inference():
        scope[id(flow), id(x)] = (flow, x, _state_of(flow, x), encoding)


def encode_shared(
    flow: nn.Module, encode: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
) -> tuple[Tensor, Tensor]:
    """``encode(x)``, or what it gave before within the scope."""
    if _STORE.get() is None or x.is_inference():
        return encode(x)
    found = lookup(flow, x)
    if found is None:
        found = encode(x)
        store(flow, x, found)
    return found


def encode_together(
    flow: nn.Module, encode: Callable[[Tensor], tuple[Tensor, Tensor]], xs: tuple[Tensor, ...]
) -> None:
    """Fill the scope with the encodings of several batches, computed in one pass."""
    if _STORE.get() is None or any(x.is_inference() for x in xs):
        return
    missing = [x for x in xs if lookup(flow, x) is None]
    if len(missing) < 2:
        return  # nothing to join: encoded when asked for
    sizes = [len(x) for x in missing]
    z, ladj = encode(torch.cat(missing))
    for x, z_part, ladj_part in zip(missing, z.split(sizes), ladj.split(sizes), strict=True):
        store(flow, x, (z_part, ladj_part))
