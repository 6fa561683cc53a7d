"""Sizes of the data sets of which batches are parts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._during import during

__all__ = ["Sizes", "without_sizes"]

_COUNT: ContextVar[bool] = ContextVar("pyro_scnf_sizes_count", default=True)


def without_sizes() -> AbstractContextManager[None]:
    """Within this block sizes are not looked at, because its result is that of single rows."""
    return during(_COUNT, False)


@dataclass(frozen=True)
class Sizes:
    """The sizes of the labelled and the unlabelled data set, ``None`` where a batch is all of it.

    The methods return the size to which a batch is scaled up, or ``None``.
    """

    labelled: int | None
    unlabelled: int | None

    def of_labelled(self, rows: int) -> int | None:
        """For a labelled batch in a plate of its own.

        :raises ValueError: if the batch has more rows than the data set.
        """
        return _checked("num_labelled", self.labelled, rows)

    def of_unlabelled(self, rows: int) -> int | None:
        """Likewise for an unlabelled batch."""
        return _checked("num_unlabelled", self.unlabelled, rows)

    def of_batch(self, rows: int, y: Tensor | None, *, drawn: bool = False) -> int | None:
        """For a batch in one plate, which may hold labelled and unlabelled rows.

        :param y: its labels, -1 where unknown; ``None`` if all are.
        :param bool drawn: whether the model draws x. Any number of rows may then be drawn.
        :raises ValueError: if only one size is given and the batch has rows of the other kind, or if it has
            more rows of a kind than the data set.
        """
        if not _COUNT.get():
            return None
        labelled = 0 if y is None else int((y != UNLABELLED).sum())
        kinds = {
            "num_labelled": (self.labelled, labelled),
            "num_unlabelled": (self.unlabelled, rows - labelled),
        }
        given = {name: size for name, (size, _) in kinds.items() if size is not None}
        missing = [name for name, (size, count) in kinds.items() if size is None and count]
        if not given or (drawn and (missing or rows > sum(given.values()))):
            return None
        if missing:
            (name, size), *_ = given.items()
            raise ValueError(
                f"{name}={size} is given without {missing[0]}, and the batch has {labelled} labelled and "
                f"{rows - labelled} unlabelled rows in one plate, so nobody knows how many rows it stands "
                f"for; give {missing[0]} too"
            )
        if not drawn:
            for name, size in given.items():
                _checked(name, size, kinds[name][1])
        return sum(given.values())


def _checked(name: str, size: int | None, rows: int) -> int | None:
    """``size``, if it counts and the batch is not larger."""
    if size is None or not _COUNT.get():
        return None
    if rows > size:
        kind = name.removeprefix("num_")
        raise ValueError(
            f"{name}={size}: the batch has {rows} {kind} rows, more than the data set; give at least {rows}"
        )
    return size
