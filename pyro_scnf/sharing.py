"""One encoding and one class table of a data tensor for all who need them, kept within a block."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyro_scnf._contents import Contents

__all__ = ["share_encoding"]

LIMIT = 32
"""A block keeps this many values at most. The one that was used least recently goes first."""

Kind = Literal["encoding", "scores"]
Value = tuple[Tensor, ...]
Modules = tuple[nn.Module, ...]


class Block:
    """The values that are kept. The key of a value is its kind, its modules and its data tensor.

    :param bool watch: whether to compare the contents of data and parameters before a value is used again.
        A block that does not watch misses writes that PyTorch does not count (``.data``, NumPy views).
    :ivar int evaluations: how many evaluations of a loss are in progress. Class tables with a graph are
        kept only during these.
    """

    def __init__(self, watch: bool) -> None:
        self.watch = watch
        self.evaluations = 0
        self.closed = False
        self.entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()

    def find(self, kind: Kind, parts: _Parts, x: Tensor) -> Value | None:
        """A value that is still valid, or ``None``."""
        key = (kind, *map(id, parts.modules), id(x))
        entry = self.entries.get(key)
        if entry is None or entry.x() is not x or entry.state != _state_of(parts, x):
            return None
        if entry.watched is not None and not entry.watched.unchanged(parts, x):
            return None
        self.entries.move_to_end(key)
        if entry.with_grad == torch.is_grad_enabled() or (entry.with_grad and not _has_graph(entry.value)):
            return entry.value
        # A value without a graph is of no use where gradients are on.
        return tuple(v.detach() for v in entry.value) if entry.with_grad else None

    def keep(self, kind: Kind, parts: _Parts, x: Tensor, value: Value) -> None:
        """Keep a value until ``x`` is gone or newer values take its place.

        A class table with a graph is kept during an evaluation only, because a later evaluation may need a
        graph of its own.
        """
        if not self.accepts(parts, x) or (kind == "scores" and not self.evaluations and _has_graph(value)):
            return
        key, entries = (kind, *map(id, parts.modules), id(x)), self.entries
        gone = weakref.ref(x, lambda _: entries.pop(key, None))
        watched = self._watch(parts, x) if self.watch else None
        state = _state_of(parts, x)
        entries[key] = _Entry(gone, parts, state, watched, torch.is_grad_enabled(), value)
        entries.move_to_end(key)
        while len(entries) > LIMIT:
            entries.popitem(last=False)

    def accepts(self, parts: _Parts, x: Tensor) -> bool:
        """Whether a value of ``x`` can be kept."""
        return _state_of(parts, x) is not None and not (self.watch and _places_of(parts, x) is None)

    def _watch(self, parts: _Parts, x: Tensor) -> _Watched:
        """What to compare. Values of the same modules share a copy of the parameters."""
        places = _places_of(parts, x)
        for entry in reversed(self.entries.values()):
            earlier = entry.watched
            if earlier and entry.parts.modules == parts.modules and earlier.parameters.of(parts.tensors):
                return _Watched(places, Contents([x]), earlier.parameters)
        return _Watched(places, Contents([x]), Contents(parts.tensors))

    def close(self) -> None:
        """Forget everything, for good."""
        self.entries.clear()
        self.closed = True

    def end_evaluation(self) -> None:
        """Forget the class tables that have a graph, if this was the last evaluation in progress."""
        self.evaluations -= 1
        for key, entry in list(self.entries.items()):
            if not self.evaluations and key[0] == "scores" and _has_graph(entry.value):
                del self.entries[key]


class _Watched(NamedTuple):
    """Where data and parameters were, and what they held."""

    places: list[object] | None
    data: Contents
    parameters: Contents

    def unchanged(self, parts: _Parts, x: Tensor) -> bool:
        """Whether they are where they were, and hold what they held."""
        return self.places == _places_of(parts, x) and self.data.same() and self.parameters.same()


class _Entry(NamedTuple):
    """A value, and what it was computed from."""

    x: weakref.ref[Tensor]
    parts: _Parts  # kept alive, so that no other module or parameter gets their ids
    state: tuple[object, ...] | None
    watched: _Watched | None
    with_grad: bool
    value: Value


_BLOCK: ContextVar[Block | None] = ContextVar("pyro_scnf_block", default=None)


# -- blocks ----------------------------------------------------------------------------------------
@contextmanager
def share_encoding() -> Iterator[None]:
    r"""Within this block, :math:`f_w` encodes each data tensor once, however often its encoding is needed.

    Use it for a guide and a model that need the same encoding (EM-SGD), and for many evaluations with a
    frozen flow (NUTS over the rest of a model). If the prior is frozen too, the block also keeps the class
    table :math:`\log p(z_f \mid y = k)`.

    A value is used again only for the *same tensor object*, with unchanged values and unchanged parameters,
    under the same gradient, training and autocast mode. After an optimiser step a tensor is therefore encoded
    anew. The block notices every change, also one that PyTorch does not count: a write through ``.data``, as
    some of Pyro's optimisers do, or through a NumPy view. For that purpose it holds a copy of the parameters
    and of the data, and compares them at each use.

    :func:`pyro_scnf.elbo` opens a block by itself at each call, unless one is open. No optimiser runs within
    that block. It therefore holds no copy, and notices only the changes that PyTorch counts.

    The block holds at most 32 values and their graphs. It drops a value when its data tensor is gone, and all
    of them at its end. As with any shared graph, call ``backward`` once per block, or keep the flow frozen.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
    >>> x = torch.randn(5, 2)
    >>> with share_encoding():
    ...     first, second = flow.encode(x)[1], flow.encode(x)[1]
    >>> first.data_ptr() == second.data_ptr()
    True
    """
    with _joined(Block(watch=True)) as (block, own):
        try:
            yield
        finally:
            if own:
                block.close()


@contextmanager
def evaluation() -> Iterator[None]:
    """A block for one evaluation of a loss, or the open block.

    During the evaluation it also keeps class tables that have a graph. In a block that is opened here, only
    model and guide run. No optimiser writes to parameters there, so the block does not watch them.
    """
    with _joined(Block(watch=False)) as (block, own):
        block.evaluations += 1
        try:
            yield
        finally:
            block.end_evaluation()
            if own:
                block.close()


@contextmanager
def carried() -> Iterator[None]:
    """A block that the distributions made in it can enter later, or the open block.

    Pyro scores a site after the model has returned. A distribution that remembers :func:`current` can enter
    that block again with :func:`inside`.
    """
    block = Block(watch=True)
    block.evaluations = 1
    with _joined(block):
        yield


@contextmanager
def _joined(block: Block) -> Iterator[tuple[Block, bool]]:
    """Open ``block``, unless one is open. Give the open block, and whether it is ``block``."""
    open_block = _BLOCK.get()
    if open_block is not None:
        yield open_block, False
        return
    with inside(block):
        yield block, True


@contextmanager
def inside(block: Block | None) -> Iterator[None]:
    """Enter ``block``, unless there is none, it was closed, or another one is open."""
    if block is None or block.closed or _BLOCK.get() is not None:
        yield
        return
    token = _BLOCK.set(block)
    try:
        yield
    finally:
        _BLOCK.reset(token)


def current() -> Block | None:
    """The open block."""
    return _BLOCK.get()


# -- values ----------------------------------------------------------------------------------------
def shared(
    kind: Kind, modules: Modules, compute: Callable[[Sequence[Tensor]], Value], xs: Sequence[Tensor]
) -> list[Value]:
    """The value of each data tensor in ``xs``: an earlier one that the open block holds, or a new one.

    :param compute: computes the values that are missing in one call. It gets the data tensors. With several
        ``(B_i, ...)``, it returns their values joined along the first dimension.
    """
    block = _BLOCK.get()
    if block is None:
        return _compute(compute, xs)
    parts = _Parts.of(modules)
    found = [block.find(kind, parts, x) for x in xs]
    missing = [x for x, value in zip(xs, found, strict=True) if value is None]
    new = _compute(compute, missing) if missing else []
    parts = _Parts.of(modules) if missing else parts  # the computation may have changed buffers
    for x, value in zip(missing, new, strict=True):
        block.keep(kind, parts, x, value)
    rest = iter(new)
    return [next(rest) if value is None else value for value in found]


def _compute(compute: Callable[[Sequence[Tensor]], Value], xs: Sequence[Tensor]) -> list[Value]:
    """The values of ``xs`` from one call."""
    joined = compute(xs)
    if len(xs) == 1:
        return [joined]
    sizes = [len(x) for x in xs]
    return list(zip(*(part.split(sizes) for part in joined), strict=True))


def find(kind: Kind, modules: Modules, x: Tensor) -> Value | None:
    """The value of ``x`` that the open block holds, if there is one."""
    block = _BLOCK.get()
    return None if block is None else block.find(kind, _Parts.of(modules), x)


def can_keep(modules: Modules, xs: Sequence[Tensor]) -> bool:
    """Whether a block is open that would keep values of all of ``xs``."""
    block = _BLOCK.get()
    if block is None:
        return False
    parts = _Parts.of(modules)
    return all(block.accepts(parts, x) for x in xs)


def alias(x: Tensor) -> Tensor:
    """``x`` as another tensor object. A graph then holds the values of ``x``, but not ``x`` itself."""
    has_derivative = x.requires_grad or forward_ad.unpack_dual(x).tangent is not None
    return x if has_derivative else x.detach()


# -- what a value depends on -----------------------------------------------------------------------
def walk(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """``modules`` and all modules within them. ``Module.modules()`` takes five times as long."""
    stack: list[nn.Module | None] = list(modules)
    while stack:
        module = stack.pop()
        if module is not None:
            yield module
            stack += module._modules.values()


class _Parts(NamedTuple):
    """Modules, all modules within them, and the parameters and buffers of these."""

    modules: Modules
    inner: list[nn.Module]
    tensors: list[Tensor]

    @classmethod
    def of(cls, modules: Modules) -> _Parts:
        """The parts of ``modules``.

        ``Module.parameters()`` also makes names. That would take most of the time that sharing costs.
        """
        inner, tensors = list(walk(modules)), list[Tensor]()
        for module in inner:
            if module._parameters:
                tensors.extend(t for t in module._parameters.values() if t is not None)
            if module._buffers:
                tensors.extend(t for t in module._buffers.values() if t is not None)
        return cls(modules, inner, tensors)


def _state_of(parts: _Parts, x: Tensor) -> tuple[object, ...] | None:
    """Which tensors there are, their versions, and the modes of computation.

    ``None`` if a value of ``x`` cannot be kept: an inference tensor has no version, and a ``PyroSample`` has
    another value at each use.
    """
    if any(module.__dict__.get("_pyro_samples") for module in parts.inner):
        return None
    tensors = [x, *parts.tensors]
    try:  # lists are quicker than one tuple for each tensor
        return (
            list(map(id, tensors)),
            [t._version for t in tensors],
            [t.requires_grad for t in tensors],
            [module.training for module in parts.inner],
            torch.is_autocast_enabled(x.device.type),
            torch.get_autocast_dtype(x.device.type),
            torch.is_inference_mode_enabled(),
        )
    except RuntimeError:
        return None


def _places_of(parts: _Parts, x: Tensor) -> list[object] | None:
    """Where the tensors lie. ``None`` if one is inside ``torch.func`` and has no place."""
    tensors = [x, *parts.tensors]
    try:
        return [
            [t.data_ptr() for t in tensors],
            [t.shape for t in tensors],
            [t.stride() for t in tensors],
        ]
    except RuntimeError:
        return None


def _has_graph(value: Value) -> bool:
    return any(part.requires_grad for part in value)
