"""New matplotlib figures, and the tensors they draw. pyplot does not know the figures and keeps none open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf.analysis import Plane
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.datasets.convert import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "check_classes",
    "class_colours",
    "draw_rows",
    "drawable",
    "extent_of",
    "new_figure",
    "plane_points",
]


def new_figure(
    panels: int, size: tuple[float, float], *, rows: int = 1, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches with panels in a row, or in several.

    :param int panels: how many in a row.
    :param bool shared: whether the panels share both axes.
    :raises ImportError: without matplotlib.
    """
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, panels, squeeze=False, sharex=shared, sharey=shared)
    return figure, list(grid.flat)


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


def check_classes(plane: Plane, data: SemiSupervisedData, owner: str) -> None:
    """Raise unless ``data`` are points of the plane, of as many classes as ``plane``."""
    plane_points(data.x, "data.x", owner)
    if plane.probs.shape[-1] != data.num_classes:
        raise ValueError(
            f"{owner}: data have {data.num_classes} classes and plane has {plane.probs.shape[-1]}; "
            "expected the data of the model that was evaluated"
        )


def extent_of(plane: Plane) -> tuple[float, float, float, float]:
    """The ends of ``plane``: left, right, bottom, top."""
    return plane.low[0].item(), plane.high[0].item(), plane.low[1].item(), plane.high[1].item()


def draw_rows(panel: Axes, x: Tensor, y: Tensor, colours: np.ndarray, marker: str = "o") -> None:
    """Draw points: unlabelled ones small and grey, labelled ones large and in the colour of their class.

    :param x: points ``(N, 2)``.
    :param y: their labels ``(N,)``, -1 where unknown.
    :param colours: ``(K, 3)``.
    :param marker: the shape of labelled points.
    """
    points, labels = drawable(x), y.cpu().numpy()
    known, others = points[labels >= 0], points[labels < 0]
    panel.scatter(others[:, 0], others[:, 1], s=3, c="0.45", linewidths=0, label="unlabelled")
    face = colours[labels[labels >= 0]]
    panel.scatter(known[:, 0], known[:, 1], s=70, c=face, edgecolors="k", marker=marker, label="labelled")


def class_colours(num_classes: int) -> Tensor:
    """A colour for each class, ``(K, 3)``: red, green and blue in the unit interval.

    :raises ImportError: without matplotlib.
    """
    maps = require("matplotlib", "plots").colormaps
    if num_classes <= 20:
        return torch.tensor(maps["tab10" if num_classes <= 10 else "tab20"].colors[:num_classes])
    return torch.tensor(maps["turbo"](torch.linspace(0, 1, num_classes).numpy())[:, :3], dtype=torch.float32)
