"""One encoding and one class table of a data tensor for all who need them, kept within a block."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyro_scnf._during import during
from pyro_scnf._state import Contents, Parts, State, contents_of, state_with_data

__all__ = ["share_encoding"]

LIMIT, PLAIN_LIMIT = 32, 256
"""A block keeps so many values with a graph, and so many without one. The least recently used ones go first.
Without a graph a value is about as large as its data, which the user keeps anyway."""

Kind = Literal["encoding", "scores"]
Value = tuple[Tensor, Tensor]
"""An encoding and its log-determinant, or a class table and what all labels share."""

Modules = tuple[nn.Module, ...]


class Block:
    """The values that are kept. The key of a value is its kind, its modules and its data tensors.

    These are x, and for a class table also the covariates, if there are any.

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

    def find(self, kind: Kind, parts: Parts, *data: Tensor) -> Value | None:
        """A value that is still valid, or ``None``."""
        key = _key(kind, parts, data)
        entry = self.entries.get(key)
        if entry is None or not entry.is_of(data) or entry.versions != _versions(entry.value):
            return None
        if entry.state != state_with_data(parts, *data):
            return None
        if entry.watched is not None and not entry.watched.unchanged(parts, data):
            return None
        self.entries.move_to_end(key)
        if entry.with_grad == torch.is_grad_enabled() or (entry.with_grad and not _has_graph(entry.value)):
            return entry.value
        # A value without a graph is of no use where gradients are on.
        first, second = entry.value
        return (first.detach(), second.detach()) if entry.with_grad else None

    def keep(self, kind: Kind, parts: Parts, value: Value, *data: Tensor) -> None:
        """Keep a value until its data are gone or newer values take its place.

        A class table is kept beyond an evaluation only if it has no graph, since later evaluations may need
        one of their own, and if only modules of this package computed it. Others may read what nobody sees,
        such as ``pyro.param``.
        """
        if kind == "scores" and not self.evaluations and not _is_lasting(parts, value):
            return
        state = state_with_data(parts, *data)
        if state is None:
            return
        key, entries = _key(kind, parts, data), self.entries
        # Without a cycle of references, so that a graph is freed as soon as nobody needs it.
        drop = partial(_drop, weakref.ref(self), key)
        gone = tuple(weakref.ref(x, drop) for x in data)
        watched = _Watched.of(parts, data) if self.watch else None
        value = _with_versions(value)
        entries[key] = _Entry(gone, state, watched, torch.is_grad_enabled(), value, _versions(value))
        entries.move_to_end(key)
        graph = value[0].requires_grad
        alike = [other for other, entry in entries.items() if entry.value[0].requires_grad == graph]
        for other in alike[: -LIMIT if graph else -PLAIN_LIMIT]:
            del entries[other]

    def close(self) -> None:
        """Forget everything, for good."""
        self.entries.clear()
        self.closed = True

    def end_evaluation(self) -> None:
        """Forget the class tables that do not last, if this was the last evaluation in progress."""
        self.evaluations -= 1
        for key, entry in list(self.entries.items()):
            if (
                not self.evaluations
                and key[0] == "scores"
                and not _is_lasting(entry.state.parts, entry.value)
            ):
                del self.entries[key]


class _Watched(NamedTuple):
    """What the data held, and the parameters of each module."""

    data: Contents
    parameters: list[Contents]

    @classmethod
    def of(cls, parts: Parts, data: Sequence[Tensor]) -> _Watched:
        named = zip(parts.modules, parts.tensors, strict=True)
        return cls(Contents(data), [contents_of(module, tensors) for module, tensors in named])

    def unchanged(self, parts: Parts, data: Sequence[Tensor]) -> bool:
        """Whether they still hold it."""
        return self.data.same(data) and all(map(Contents.same, self.parameters, parts.tensors))


class _Entry(NamedTuple):
    """A value, and what it was computed from.

    :ivar versions: those of the value when it was new. Whoever gets it may change it in place.
    """

    data: tuple[weakref.ref[Tensor], ...]
    state: State
    watched: _Watched | None
    with_grad: bool
    value: Value
    versions: tuple[int, ...]

    def is_of(self, data: Sequence[Tensor]) -> bool:
        """Whether the value was computed from these very tensors."""
        return all(ref() is x for ref, x in zip(self.data, data, strict=True))


def _drop(block: weakref.ref[Block], key: tuple[object, ...], _: object) -> None:
    """Forget a value whose data are gone."""
    known = block()
    if known is not None:
        known.entries.pop(key, None)


def _key(kind: Kind, parts: Parts, data: Sequence[Tensor]) -> tuple[object, ...]:
    return kind, tuple(map(id, parts.modules)), tuple(map(id, data))


_BLOCK: ContextVar[Block | None] = ContextVar("pyro_scnf_block", default=None)


# -- blocks ----------------------------------------------------------------------------------------
@contextmanager
def share_encoding() -> Iterator[None]:
    r"""Within this block, :math:`f_w` encodes each data tensor once, however often its encoding is needed.

    Use it for a guide and a model that need the same encoding (EM-SGD), and for many evaluations with a
    frozen flow (NUTS over the rest of a model). If the prior is frozen too, and one of this package, the
    block also keeps the class table :math:`\log p(z_f \mid y = k)`.

    A value is used again only for the *same tensor object*, with unchanged values and unchanged parameters,
    under the same gradient, training and autocast mode. A class table that depends on covariates is used
    again only for the same tensor of covariates. After an optimiser step a tensor is therefore encoded
    anew. The block notices every change, also one that PyTorch does not count: a write through ``.data``, as
    some of Pyro's optimisers do, or through a NumPy view. For that purpose it holds a copy of the parameters
    and of the data, and compares them at each use. A value that you change in place is computed anew, unless
    PyTorch does not count that change. Of the attributes of layers, the block notices new modules and new
    settings: ``solver``, ``divergence``, ``activation``, ``alpha`` and ``bound``. Leave the other plain
    attributes of layers of this package and of PyTorch as they are, or open a new block.

    :func:`pyro_scnf.elbo` opens a block by itself at each call, unless one is open. If model and guide are of
    this package, nothing writes to parameters within that block. It then holds no copy, and notices only the
    changes that PyTorch counts.

    The block holds at most 32 values with their graphs, and 256 without one. It drops a value when its data
    tensor is gone, and all of them at its end. As with any shared graph, call ``backward`` once per block, or
    keep the flow frozen.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
    >>> x = torch.randn(5, 2)
    >>> with share_encoding():
    ...     first, second = flow.encode(x)[1], flow.encode(x)[1]
    >>> first.data_ptr() == second.data_ptr()
    True
    """
    with _joined(Block(watch=True), close=True):
        yield


@contextmanager
def evaluation(watch: bool = True) -> Iterator[None]:
    """A block for one evaluation of a loss, or the open block. During it, class tables with a graph are kept.

    :param bool watch: whether a block of its own compares contents, as that of a user does. That takes time,
        and is needless where only code of this package runs inside.
    """
    with _joined(Block(watch), close=True) as block:
        block.evaluations += 1
        try:
            yield
        finally:
            block.end_evaluation()


@contextmanager
def carried() -> Iterator[None]:
    """A block that the distributions made in it can enter later, or the open block.

    Pyro scores a site after the model has returned. A distribution that remembers :func:`current` can enter
    that block again with :func:`inside`.
    """
    block = Block(watch=True)
    block.evaluations = 1
    with _joined(block, close=False):
        yield


@contextmanager
def _joined(block: Block, close: bool) -> Iterator[Block]:
    """Give the open block. If there is none, open ``block``, and ``close`` it in the end."""
    open_block = _BLOCK.get()
    if open_block is not None:
        yield open_block
        return
    try:
        with inside(block):
            yield block
    finally:
        if close:
            block.close()


@contextmanager
def inside(block: Block | None) -> Iterator[None]:
    """Enter ``block``, unless there is none, it was closed, or another one is open."""
    if block is None or block.closed or _BLOCK.get() is not None:
        yield
        return
    with during(_BLOCK, block):
        yield


def current() -> Block | None:
    """The open block."""
    return _BLOCK.get()


# -- values ----------------------------------------------------------------------------------------
def shared(
    kind: Kind,
    modules: Modules,
    compute: Callable[[Sequence[Tensor]], Value],
    xs: Sequence[Tensor],
    *covariates: Tensor,
) -> list[Value]:
    """The value of each data tensor in ``xs``: an earlier one that the open block holds, or a new one.

    :param compute: computes the values that are missing in one call. It gets the data tensors. With several
        ``(B_i, ...)``, it returns their values joined along the first dimension.
    :param covariates: what the value depends on besides, and ``compute`` knows already.
    """
    block = _BLOCK.get()
    if block is None:
        return _compute(compute, xs)
    parts = Parts.of(modules)
    found = [block.find(kind, parts, x, *covariates) for x in xs]
    missing = [x for x, value in zip(xs, found, strict=True) if value is None]
    new = _compute(compute, missing) if missing else []
    parts = Parts.of(modules) if missing else parts  # the computation may have changed buffers
    for x, value in zip(missing, new, strict=True):
        block.keep(kind, parts, value, x, *covariates)
    rest = iter(new)
    return [next(rest) if value is None else value for value in found]


def _compute(compute: Callable[[Sequence[Tensor]], Value], xs: Sequence[Tensor]) -> list[Value]:
    """The values of ``xs`` from one call."""
    joined = compute(xs)
    if len(xs) == 1:
        return [joined]
    first, second = (part.split([len(x) for x in xs]) for part in joined)
    return list(zip(first, second, strict=True))


def find(kind: Kind, modules: Modules, *data: Tensor) -> Value | None:
    """The value of ``data`` that the open block holds, if there is one."""
    block = _BLOCK.get()
    return None if block is None else block.find(kind, Parts.of(modules), *data)


def can_keep(modules: Modules, xs: Sequence[Tensor]) -> bool:
    """Whether a block is open that would keep values of all of ``xs``."""
    block = _BLOCK.get()
    if block is None:
        return False
    parts = Parts.of(modules)
    return all(state_with_data(parts, x) is not None for x in xs)


def alias(x: Tensor) -> Tensor:
    """``x`` as another tensor object. A graph then holds the values of ``x``, but not ``x`` itself."""
    has_derivative = x.requires_grad or forward_ad.unpack_dual(x).tangent is not None
    return x if has_derivative else x.detach()


def _is_lasting(parts: Parts, value: Value) -> bool:
    """Whether a class table may be used after the evaluation that computed it."""
    return not _has_graph(value) and not parts.foreign


def _versions(value: Value) -> tuple[int, ...]:
    return tuple(part._version for part in value)


def _with_versions(value: Value) -> Value:
    """``value``, whose changes PyTorch counts. It does not count those of inference tensors."""
    if not any(part.is_inference() for part in value):
        return value
    with torch.inference_mode(False):
        first, second = (part.clone() for part in value)
    return first, second


def _has_graph(value: Value) -> bool:
    return any(part.requires_grad for part in value)
