"""New matplotlib figures, and the tensors they draw. pyplot does not know the figures and keeps none open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf.datasets.convert import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["class_colours", "drawable", "new_figure", "plane_points"]


def new_figure(panels: int, size: tuple[float, float], *, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches with panels in a row.

    :param bool shared: whether the panels share both axes.
    :raises ImportError: without matplotlib.
    """
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False, sharex=shared, sharey=shared)
    return figure, list(grid[0])


def drawable(x: Tensor) -> np.ndarray:
    """``x`` as matplotlib can read it: an array in single precision, or in double if ``x`` is."""
    x = x.detach().cpu()
    return (x if x.dtype == torch.float64 else x.float()).numpy()


def plane_points(x: object, name: str, owner: str) -> Tensor:
    """Points of the plane ``(N, 2)`` as a tensor.

    :raises ValueError: for another shape, and for NaN and infinity.
    """
    points = as_rows(x, name, owner)
    if points.shape[1:] != (2,):
        raise ValueError(
            f"{owner}: {name} has shape {tuple(points.shape)}, expected points of the plane (N, 2)"
        )
    return points


def class_colours(num_classes: int) -> Tensor:
    """A colour for each class, ``(K, 3)``: red, green and blue in the unit interval.

    :raises ImportError: without matplotlib.
    """
    maps = require("matplotlib", "plots").colormaps
    if num_classes <= 20:
        return torch.tensor(maps["tab10" if num_classes <= 10 else "tab20"].colors[:num_classes])
    return torch.tensor(maps["turbo"](torch.linspace(0, 1, num_classes).numpy())[:, :3], dtype=torch.float32)
