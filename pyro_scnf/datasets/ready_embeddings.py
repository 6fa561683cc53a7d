"""Embeddings that somebody computed before, in a file of NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf.datasets.array_files import read_arrays
from pyro_scnf.datasets.convert import as_labels, as_rows

__all__ = ["ReadyRows", "read_embeddings"]

OTHER_NAMES = {"x": "x_train", "y": "y_train"}


@dataclass(frozen=True)
class ReadyRows:
    """Embeddings of training rows or of test rows.

    :ivar Tensor x: embeddings ``(N, D)`` in float32.
    :ivar y: labels ``(N,)``, -1 for gaps; ``None`` if the file holds none.
    :ivar str given: what messages call them.
    """

    x: Tensor
    y: Tensor | None
    given: str

    def of(self, y: Tensor) -> Tensor:
        """The embeddings, if they may be those of rows with the labels ``y`` ``(N,)``.

        :raises ValueError: if they differ in number, or in a label that both know.
        """
        if len(self.x) != len(y):
            raise ValueError(
                f"{self.given} have {len(self.x)} rows, and there are {len(y)} texts; expected a row for "
                "each text, in the same order"
            )
        if self.y is not None:
            differ = (self.y != y) & (self.y != UNLABELLED) & (y != UNLABELLED)
            if differ.any():
                row = int(differ.nonzero()[0])
                raise ValueError(
                    f"{self.given} have other labels than the texts in {int(differ.sum())} of {len(y)} rows, "
                    f"first {int(self.y[row])} in place of {int(y[row])} in row {row}; expected embeddings "
                    "of these texts in their order"
                )
        return self.x


def read_embeddings(path: object) -> dict[str, ReadyRows]:
    """The embeddings in a file that ``numpy.savez`` wrote, of ``"train"`` and, if it has them, of ``"test"``.

    The arrays are ``x_train``, ``y_train``, ``x_test`` and ``y_test``. ``x`` and ``y`` are other names of the
    first two, and capitals do not matter. Only ``x_train`` has to be there.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no such file, or does not hold rows of numbers and a label for each.
    """
    if not isinstance(path, str | Path):
        raise ValueError(
            f"embeddings is of type {type(path).__name__}, expected the path of a file that numpy.savez wrote"
        )
    given = f"embeddings={str(path)!r}"
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{given}: there is no such file")
    arrays = read_arrays(file, given, lambda name: OTHER_NAMES.get(name.lower(), name.lower()))
    if "x_train" not in arrays:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(f"{given} holds {held}, expected x_train, y_train, x_test and y_test")
    parts = {}
    for part in ("train", "test"):
        if f"x_{part}" not in arrays:
            continue
        x = as_rows(arrays[f"x_{part}"], f"x_{part}", given).float()
        if x.dim() != 2:
            raise ValueError(f"{given}: x_{part} has shape {tuple(x.shape)}, expected (N, D)")
        y = None
        if f"y_{part}" in arrays:
            y = as_labels(arrays[f"y_{part}"], None, f"y_{part}", given, unlabelled=True)
            if len(y) != len(x):
                raise ValueError(
                    f"{given}: y_{part} has {len(y)} labels and x_{part} has {len(x)} rows, expected as many"
                )
        names = f"x_{part}" if y is None else f"x_{part} and y_{part}"
        parts[part] = ReadyRows(x, y, f"{given}: {names}")
    return parts
