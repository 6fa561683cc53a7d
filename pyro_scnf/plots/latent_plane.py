"""A model of the plane in four panels: its data, their latents, and draws in both spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_scnf._numbers import check_kinds
from pyro_scnf.analysis import LatentPlane, Plane
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.plots._figure import (
    check_classes,
    class_colours,
    draw_rows,
    drawable,
    extent_of,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["latent_plane"]

CONTOURS = np.exp([-2.0, -0.5])
"""Shares of the largest density of a class at which its contours lie: in a Gaussian, 2 and 1 standard
deviations from the mean."""


def latent_plane(plane: LatentPlane, data: SemiSupervisedData) -> Figure:
    """Four panels: data and decision boundary, latents and classes, draws of latents, draws of data.

    Labelled points are triangles. Dashed lines are the decision boundary, in both spaces. Beside the latents,
    a class is shown by two contours of its density, which lie 1 and 2 standard deviations from the mean of a
    Gaussian. Draws in the two spaces correspond to each other.

    :param plane: from :func:`pyro_scnf.analysis.latent_plane`.
    :param data: the data that function was given as ``x``, with their labels.
    :raises ValueError: for data that are no points of the plane, that are other rows, or that have another
        number of classes.
    :raises ImportError: without matplotlib.

    Reference: Figures 1, 2 and 4 of Izmailov et al. (2020).
    """
    check_kinds(plane=(plane, LatentPlane), data=(data, SemiSupervisedData))
    check_classes(plane.data, data, "latent_plane")
    if len(plane.z) != len(data.x):
        raise ValueError(
            f"latent_plane: data.x has {len(data.x)} rows and plane.z has {len(plane.z)} latents; expected "
            "the data that were encoded"
        )
    colours = class_colours(data.num_classes).numpy()
    figure, panels = new_figure(4, (17, 4.2))
    for panel, space, rows in ((panels[0], plane.data, data.x), (panels[1], plane.latent, plane.z)):
        _draw_boundary(panel, space)
        draw_rows(panel, rows, data.y, colours, "^")
    _draw_classes(panels[1], plane.latent, colours)
    drawn = colours[plane.drawn_y.numpy()]
    for panel, points in ((panels[2], drawable(plane.drawn_z)), (panels[3], drawable(plane.drawn_x))):
        panel.scatter(points[:, 0], points[:, 1], s=6, c=drawn, linewidths=0)
    spaces = plane.data, plane.latent, plane.latent, plane.data
    titles = "data and decision boundary", "latents of the data", "draws of p(z)", "draws of p(x)"
    for panel, space, title in zip(panels, spaces, titles, strict=True):
        left, right, bottom, top = extent_of(space)
        panel.set(title=title, xlim=(left, right), ylim=(bottom, top))
    panels[0].legend(loc="upper right", fontsize=8)
    return figure


def _axes_of(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the grid of ``plane`` along both axes."""
    left, right, bottom, top = extent_of(plane)
    rows, columns = plane.density.shape
    return np.linspace(left, right, columns), np.linspace(bottom, top, rows)


def _draw_boundary(panel: Axes, plane: Plane) -> None:
    """Dashed lines where the most probable label changes."""
    label = drawable(plane.probs).argmax(-1)
    for number, lead in enumerate(drawable(plane.lead.movedim(-1, 0))):
        # A boundary belongs to two classes. Dashes drawn twice would fill the gaps of each other.
        later = np.ma.masked_where(label < number, lead)
        if later.count() and later.min() < 0 < later.max():  # matplotlib warns of a contour that is nowhere
            panel.contour(*_axes_of(plane), later, [0.0], colors="k", linestyles="dashed", linewidths=1)


def _draw_classes(panel: Axes, plane: Plane, colours: np.ndarray) -> None:
    """Contours of the density of each class."""
    for density, colour in zip(drawable(plane.joint.movedim(-1, 0)), colours, strict=True):
        if density.min() < CONTOURS[0] * density.max():
            panel.contour(
                *_axes_of(plane), density, CONTOURS * density.max(), colors=[colour], linewidths=1.5
            )
