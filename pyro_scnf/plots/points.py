"""Labelled points of the plane, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_scnf.plots._figure import class_colours, drawable, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["labelled_points"]


def labelled_points(sets: Mapping[str, tuple[Tensor, Tensor]], *, margin: float = 0.4) -> Figure:
    """Sets of points coloured by class, in a panel each. All panels have the same axes.

    Points with hidden labels (-1) are grey.

    :param sets: points ``(N, 2)`` and labels ``(N,)`` by title. The first set decides what the axes cover.
    :param float margin: how far the axes reach beyond the first set.
    :raises ValueError: if there is no set.
    :raises ImportError: without matplotlib.
    """
    if not sets:
        raise ValueError("sets is empty, expected points and labels by title")
    num_classes = 1 + max((int(y.max()) for _, y in sets.values() if len(y)), default=-1)
    grey = torch.full((1, 3), 0.45)
    colours = torch.cat([class_colours(num_classes), grey])  # label -1 selects the last row
    figure, panels = new_figure(len(sets), (4.5 * len(sets), 4.2), shared=True)
    for panel, (title, (x, y)) in zip(panels, sets.items(), strict=True):
        points = drawable(x)
        panel.scatter(points[:, 0], points[:, 1], s=6, c=colours[y.cpu().long()], linewidths=0)
        panel.set_title(title)
    first = drawable(next(iter(sets.values()))[0])
    low, high = first.amin(0) - margin, first.amax(0) + margin
    panels[0].set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    return figure
