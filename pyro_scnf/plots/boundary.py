"""Class regions and density of a model of the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_scnf.analysis import Plane
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.plots._figure import class_colours, drawable, new_figure, plane_points

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
    for name, value, kind in (("plane", plane, Plane), ("data", data, SemiSupervisedData)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} is of type {type(value).__name__}, expected a {kind.__name__}")
    plane_points(data.x, "data.x", "decision_boundary")
    if plane.probs.shape[-1] != data.num_classes:
        raise ValueError(
            f"decision_boundary: data have {data.num_classes} classes and plane has {plane.probs.shape[-1]}; "
            "expected the data of the model that was evaluated"
        )
    colours = class_colours(data.num_classes).numpy()
    known = data.labelled
    x, y, others = drawable(known[0]), known[1].cpu().numpy(), drawable(data.unlabelled)
    figure, (regions, density) = new_figure(2, (10, 4.2))
    mixed = np.einsum("hwk,kc->hwc", drawable(plane.probs), colours)
    extent = (plane.low[0].item(), plane.high[0].item(), plane.low[1].item(), plane.high[1].item())
    regions.imshow(mixed, origin="lower", extent=extent, alpha=0.35, aspect="auto")
    regions.scatter(others[:, 0], others[:, 1], s=3, c="0.45", linewidths=0, label="unlabelled")
    regions.scatter(x[:, 0], x[:, 1], s=70, c=colours[y], edgecolors="k", label="labelled")
    regions.set_title("p(y | x) and the training points")
    regions.legend(loc="upper right", fontsize=8)
    image = density.imshow(
        drawable(plane.density), origin="lower", extent=extent, cmap="magma", aspect="auto"
    )
    density.set_title("p(x)")
    figure.colorbar(image, ax=density)
    return figure
