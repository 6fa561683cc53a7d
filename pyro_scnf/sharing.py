"""One encoding of a data tensor for all who need it, kept within a block that the user opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["share_encoding"]


class _Entry(NamedTuple):
    """An encoding, and what it was computed from."""

    flow: nn.Module
    x: Tensor
    state: tuple[object, ...]
    encoding: tuple[Tensor, Tensor]


_STORE: ContextVar[dict[tuple[int, int], _Entry] | None] = ContextVar("pyro_scnf_encodings", default=None)


@contextmanager
def share_encoding() -> Iterator[None]:
    r"""Within this block, :math:`f_w` encodes each data tensor once, however often its encoding is needed.

    Use it for a guide and a model that need the same encoding (EM-SGD), and for many evaluations with a
    frozen flow (NUTS over the rest of a model). :func:`pyro_scnf.elbo` opens such a block by itself.

    An encoding is used again only for the *same tensor object*, unchanged in place, with unchanged
    parameters, under the same gradient and autocast mode. After an optimiser step a tensor is therefore
    encoded anew. The block keeps the encodings and their graph in memory until it ends. As with any shared
    graph, call ``backward`` once per block, or keep the flow frozen.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
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


def _state_of(flow: nn.Module, x: Tensor) -> tuple[object, ...]:
    """Everything that an encoding depends on. A stored encoding is valid while this is unchanged."""
    return (
        x._version,
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(x.device.type),
        tuple((id(t), t._version, _address(t)) for t in _tensors(flow)),
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of ``module``.

    ``Module.parameters()`` also makes names and looks for repetitions. It would take most of the time that
    sharing costs.
    """
    stack: list[nn.Module | None] = [module]
    while stack:
        current = stack.pop()
        if current is not None:
            yield from (t for t in current._parameters.values() if t is not None)
            yield from (t for t in current._buffers.values() if t is not None)
            stack.extend(current._modules.values())


def _address(t: Tensor) -> int:
    """Where the values of a tensor lie. Assigning to ``t.data`` changes this, but not ``t._version``."""
    try:
        return t.data_ptr()
    except RuntimeError:  # a tensor inside torch.func has no address; its id alone tells it apart
        return 0


def lookup(flow: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The stored encoding of ``x``, or ``None`` if no block is open or it holds no valid one."""
    entry = (_STORE.get() or {}).get((id(flow), id(x)))
    if entry is None or entry.flow is not flow or entry.x is not x or entry.state != _state_of(flow, x):
        return None
    return entry.encoding


def store(flow: nn.Module, x: Tensor, encoding: tuple[Tensor, Tensor]) -> None:
    """Keep an encoding, if a block is open.

    The encoding of an inference tensor is not kept: such a tensor has no version, so nothing would tell of a
    change in place.
    """
    block = _STORE.get()
    if block is not None and not x.is_inference():
        block[id(flow), id(x)] = _Entry(flow, x, _state_of(flow, x), encoding)


def encode_shared(
    flow: nn.Module, encode: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
) -> tuple[Tensor, Tensor]:
    """``encode(x)``, or its earlier result if the open block holds it."""
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
    """Encode several batches in one pass and keep the results in the open block. Without one, do nothing."""
    if _STORE.get() is None or any(x.is_inference() for x in xs):
        return
    missing = [x for x in xs if lookup(flow, x) is None]
    if len(missing) < 2:
        return  # a single batch is encoded when it is needed
    sizes = [len(x) for x in missing]
    z, ladj = encode(torch.cat(missing))
    for x, z_part, ladj_part in zip(missing, z.split(sizes), ladj.split(sizes), strict=True):
        store(flow, x, (z_part, ladj_part))
