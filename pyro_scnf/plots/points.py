"""Labelled points of the plane, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_scnf._numbers import check_number
from pyro_scnf.datasets.convert import as_labels
from pyro_scnf.plots._figure import class_colours, drawable, new_figure, plane_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["labelled_points"]


def labelled_points(sets: Mapping[str, tuple[Tensor, Tensor]], *, margin: float = 0.4) -> Figure:
    """Sets of points coloured by class, in a panel each. All panels have the same axes.

    Points with hidden labels (-1) are grey.

    :param sets: points ``(N, 2)`` and labels ``(N,)`` by title, in the forms that
        :class:`~pyro_scnf.datasets.SemiSupervisedData` takes. The first set that has points decides what the
        axes cover.
    :param float margin: how far the axes reach beyond these points.
    :raises ValueError: if there is no set; for points of another shape, NaN or infinity; unless there is a
        label for each point.
    :raises ImportError: without matplotlib.
    """
    margin = check_number("margin", margin)
    drawn = _checked(sets)
    num_classes = 1 + max((int(y.max()) for _, y in drawn.values() if len(y)), default=-1)
    grey = torch.full((1, 3), 0.45)
    colours = torch.cat([class_colours(num_classes), grey]).numpy()  # label -1 selects the last row
    figure, panels = new_figure(len(drawn), (4.5 * len(drawn), 4.2), shared=True)
    for panel, (title, (x, y)) in zip(panels, drawn.items(), strict=True):
        points = drawable(x)
        panel.scatter(points[:, 0], points[:, 1], s=6, c=colours[y.cpu().numpy()], linewidths=0)
        panel.set_title(title)
    first = next((drawable(x) for x, _ in drawn.values() if len(x)), None)
    if first is not None:
        low, high = (first.min(0) - margin).tolist(), (first.max(0) + margin).tolist()
        panels[0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def _checked(sets: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The points and the labels of each set as tensors of the same length."""
    expected = "expected points and labels by title"
    if not isinstance(sets, Mapping):
        raise ValueError(f"sets is of type {type(sets).__name__}, {expected}")
    if not sets:
        raise ValueError(f"sets is empty, {expected}")
    found = {}
    for title, pair in sets.items():
        owner = f"labelled_points: sets[{title!r}]"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"{owner} is of type {type(pair).__name__}, expected the pair of points and labels"
            )
        x, y = plane_points(pair[0], "x", owner), as_labels(pair[1], None, "y", owner, unlabelled=True)
        if len(x) != len(y):
            raise ValueError(f"{owner}: y has {len(y)} labels and x has {len(x)} points; expected as many")
        found[title] = x, y
    return found
