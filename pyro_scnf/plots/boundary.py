"""Class regions and density of a model of the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_scnf._numbers import check_kinds
from pyro_scnf.analysis import Plane
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
    from matplotlib.figure import Figure

__all__ = ["decision_boundary"]


def decision_boundary(plane: Plane, data: SemiSupervisedData) -> Figure:
    """Two panels: class regions with the training points, and the density. Labelled points are large.

    :param plane: from :func:`pyro_scnf.analysis.evaluate_plane`.
    :param data: the training data.
    :raises ValueError: for data that are no points of the plane, or that have another number of classes.
    :raises ImportError: without matplotlib.
    """
    check_kinds(plane=(plane, Plane), data=(data, SemiSupervisedData))
    check_classes(plane, data, "decision_boundary")
    colours = class_colours(data.num_classes).numpy()
    figure, (regions, density) = new_figure(2, (10, 4.2))
    mixed = np.einsum("hwk,kc->hwc", drawable(plane.probs), colours)
    extent = extent_of(plane)
    regions.imshow(mixed, origin="lower", extent=extent, alpha=0.35, aspect="auto")
    draw_rows(regions, data.x, data.y, colours)
    regions.set_title("p(y | x) and the training points")
    regions.legend(loc="upper right", fontsize=8)
    image = density.imshow(
        drawable(plane.density), origin="lower", extent=extent, cmap="magma", aspect="auto"
    )
    density.set_title("p(x)")
    figure.colorbar(image, ax=density)
    return figure
