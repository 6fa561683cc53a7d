"""One encoding and one class table of a data tensor for all who need them, kept within a block."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["share_encoding"]

LIMIT = 32
"""A block keeps this many values at most. The one that was used least recently goes first."""

Kind = Literal["encoding", "class table"]
Value = tuple[Tensor, ...]
Modules = tuple[nn.Module, ...]


class Block:
    """The values that are kept, by what they are, the modules that computed them and the data tensor.

    :param bool watch: whether to compare the contents of data and parameters before a value is used again.
        Without that, a write that PyTorch does not count (through ``.data``, or a NumPy view) goes unseen.
    :ivar int evaluations: how many evaluations of a loss are in progress. Class tables with a graph are
        kept only during these.
    """

    def __init__(self, watch: bool) -> None:
        self.watch = watch
        self.evaluations = 0
        self.closed = False
        self.entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()

    def find(self, kind: Kind, modules: Modules, x: Tensor) -> Value | None:
        """A value that is still valid, or ``None``."""
        key = (kind, *map(id, modules), id(x))
        entry = self.entries.get(key)
        if entry is None or entry.x() is not x:
            return None
        parts = _parts_of(modules)
        if parts is None or entry.state != _state_of(x, parts):
            return None
        if self.watch and not (_same(entry.data, [x]) and _same(entry.contents, parts.tensors)):
            return None
        self.entries.move_to_end(key)
        if entry.frozen or entry.with_grad == torch.is_grad_enabled():
            return entry.value
        # A value without a graph is of no use where gradients are on.
        return tuple(v.detach() for v in entry.value) if entry.with_grad else None

    def keep(self, kind: Kind, modules: Modules, x: Tensor, value: Value) -> None:
        """Keep a value until ``x`` is gone or newer values take its place.

        A class table with a graph is kept during an evaluation only, since later ones may need a graph of
        their own.
        """
        if kind == "class table" and not self.evaluations and value[0].requires_grad:
            return
        parts = _parts_of(modules)
        state = None if parts is None else _state_of(x, parts)
        if parts is None or state is None:
            return
        key, entries = (kind, *map(id, modules), id(x)), self.entries
        entries[key] = _Entry(
            weakref.ref(x, lambda _: entries.pop(key, None)),
            modules,
            state,
            _copy([x]) if self.watch else [],
            self._contents_of(modules, parts.tensors) if self.watch else [],
            torch.is_grad_enabled(),
            not any(t.requires_grad for t in (x, *parts.tensors)),
            value,
        )
        entries.move_to_end(key)
        while len(entries) > LIMIT:
            entries.popitem(last=False)

    def _contents_of(self, modules: Modules, tensors: list[Tensor]) -> list[Tensor]:
        """A copy of the tensors of ``modules``: that of an earlier value, if they have not changed since."""
        for entry in reversed(self.entries.values()):
            if entry.modules == modules:
                return entry.contents if _same(entry.contents, tensors) else _copy(tensors)
        return _copy(tensors)

    def close(self) -> None:
        """Forget everything, for good."""
        self.entries.clear()
        self.closed = True

    def end_evaluation(self) -> None:
        """Forget the class tables that have a graph, if this was the last evaluation in progress."""
        self.evaluations -= 1
        for key, entry in list(self.entries.items()):
            if not self.evaluations and key[0] == "class table" and entry.value[0].requires_grad:
                del self.entries[key]


class _Entry(NamedTuple):
    """A value, and what it was computed from."""

    x: weakref.ref[Tensor]
    modules: Modules  # kept alive, so that no other module gets their ids
    state: tuple[object, ...]
    data: list[Tensor]
    contents: list[Tensor]
    with_grad: bool
    frozen: bool
    value: Value


_BLOCK: ContextVar[Block | None] = ContextVar("pyro_scnf_block", default=None)


# -- blocks ----------------------------------------------------------------------------------------
@contextmanager
def share_encoding() -> Iterator[None]:
    r"""Within this block, :math:`f_w` encodes each data tensor once, however often its encoding is needed.

    Use it for a guide and a model that need the same encoding (EM-SGD), and for many evaluations with a
    frozen flow (NUTS over the rest of a model). If the prior is frozen too, the block also keeps the class
    table :math:`\log p(z_f \mid y = k)`. :func:`pyro_scnf.elbo` opens such a block by itself.

    A value is used again only for the *same tensor object*, with unchanged values and unchanged parameters,
    under the same gradient, training and autocast mode. After an optimiser step a tensor is therefore encoded
    anew. The block notices every change, also one that PyTorch does not count: a write through ``.data``, as
    some of Pyro's optimisers do, or through a NumPy view. For that purpose it holds a copy of the parameters
    and of the data, and compares them at each use.

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

    During the evaluation it also keeps class tables that have a graph. Only the code of model and guide runs
    in a block of its own, so no optimiser can write to parameters there, and their contents are not compared.
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
    """A block that the distributions made in it carry on, or the open block.

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


def keeps_class_tables() -> bool:
    """Whether the open block, if there is one, also keeps class tables that have a graph."""
    block = _BLOCK.get()
    return block is not None and block.evaluations > 0


# -- values ----------------------------------------------------------------------------------------
def shared(
    kind: Kind, modules: Modules, compute: Callable[[Sequence[Tensor]], Value], xs: Sequence[Tensor]
) -> list[Value]:
    """The value of each data tensor in ``xs``: an earlier one that the open block holds, or a new one.

    :param compute: computes the values that are missing in one call. It gets the data tensors. With several
        ``(B_i, ...)``, it returns their values joined along the first dimension.
    """
    block = _BLOCK.get()
    found = [None if block is None else block.find(kind, modules, x) for x in xs]
    missing = [x for x, value in zip(xs, found, strict=True) if value is None]
    if missing:
        joined = compute(missing)
        if len(missing) > 1:
            sizes = [len(x) for x in missing]
            new = list(zip(*(part.split(sizes) for part in joined), strict=True))
        else:
            new = [joined]
        if block is not None:
            for x, value in zip(missing, new, strict=True):
                block.keep(kind, modules, x, value)
        values = iter(new)
        return [next(values) if value is None else value for value in found]
    return [value for value in found if value is not None]


def find(kind: Kind, modules: Modules, x: Tensor) -> Value | None:
    """The value of ``x`` that the open block holds, if there is one."""
    block = _BLOCK.get()
    return None if block is None else block.find(kind, modules, x)


def can_keep(modules: Modules, xs: Sequence[Tensor]) -> bool:
    """Whether a block is open that would keep values of all of ``xs``."""
    parts = None if _BLOCK.get() is None else _parts_of(modules)
    return parts is not None and all(_state_of(x, parts) is not None for x in xs)


def alias(x: Tensor) -> Tensor:
    """``x`` as another tensor object. A graph then holds the values of ``x``, but not ``x`` itself."""
    return x if x.requires_grad else x.view_as(x)


# -- what a value depends on -----------------------------------------------------------------------
class _Parts(NamedTuple):
    """What modules consist of: their parameters and buffers, and which of them are in training mode."""

    tensors: list[Tensor]
    training: list[bool]


def _parts_of(modules: Modules) -> _Parts | None:
    """The parts of ``modules``. ``None`` if one is a ``PyroSample``, which has another value at each use.

    ``Module.parameters()`` also makes names and looks for repetitions. It would take most of the time that
    sharing costs.
    """
    parts = _Parts([], [])
    stack: list[nn.Module | None] = list(modules)
    while stack:
        module = stack.pop()
        if module is not None:
            if module.__dict__.get("_pyro_samples"):
                return None
            parts.tensors.extend(t for t in module._parameters.values() if t is not None)
            parts.tensors.extend(t for t in module._buffers.values() if t is not None)
            parts.training.append(module.training)
            stack += module._modules.values()
    return parts


def _state_of(x: Tensor, parts: _Parts) -> tuple[object, ...] | None:
    """What is known of ``x`` and of the modules without reading values. ``None`` if a value cannot be kept.

    Inference tensors have no version, and tensors inside ``torch.func`` have no address.
    """
    try:
        versions = [(id(t), t._version, t.data_ptr(), t.requires_grad) for t in (x, *parts.tensors)]
        autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        return versions, parts.training, autocast, torch.is_inference_mode_enabled()
    except RuntimeError:
        return None


def _copy(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The values of ``tensors``, as one vector for each dtype and device, so that one comparison does."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault((t.dtype, t.device), []).append(t.detach().reshape(-1))
    return [torch.cat(values) for values in kinds.values()]


def _same(kept: list[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Whether ``tensors`` still have the values of a copy."""
    now = [tensors[0].detach().reshape(-1)] if len(tensors) == 1 else _copy(tensors)
    return len(kept) == len(now) and all(
        old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
        for old, new in zip(kept, now, strict=True)
    )
