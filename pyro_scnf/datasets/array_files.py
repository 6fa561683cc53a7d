"""Files of several NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["read_arrays"]


def read_arrays(path: Path, given: str, name_of: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The arrays of a file that ``numpy.savez`` wrote, by name.

    :param given: what messages call the file.
    :param name_of: the name that stands for a name in the file, such as ``"X"`` for ``"x"``.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no such file, holds objects, or two arrays of which one name stands for both.
    """
    with path.open("rb") as file:  # outside the try block: a missing file has its own error
        try:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array")
            held = {name: loaded[name] for name in loaded.files}
        except Exception as error:  # a damaged file can fail in any way
            if "Object arrays" in str(error):
                raise ValueError(
                    f"{given} holds an array of Python objects, such as words beside numbers, expected "
                    "arrays of numbers, and labels of numbers or words; convert arrays by .astype(float) or "
                    ".astype(str) before they are saved. Among labels, the words 'None' and 'nan' that "
                    "this makes of gaps are read as gaps"
                ) from error
            reason = "it is no zip file" if "pickle" in str(error) else error
            raise ValueError(f"{given} is damaged, or no file that numpy.savez wrote: {reason}") from error
    arrays: dict[str, np.ndarray] = {}
    first: dict[str, str] = {}
    for name, array in held.items():
        known = name_of(name)
        if known in arrays:
            raise ValueError(
                f"{given} holds {first[known]} and {name}, and both names mean {known}; keep one of them"
            )
        arrays[known], first[known] = array, name
    return arrays
