"""Labelled points of the plane, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_scnf.plots._figure import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["labelled_points"]


def labelled_points(sets: Mapping[str, tuple[Tensor, Tensor]], *, margin: float = 0.4) -> Figure:
    """Sets of points coloured by class, in a panel each. All panels have the same axes.

    :param sets: points ``(N, 2)`` and labels ``(N,)`` by title. The first set decides what the axes cover.
    :param float margin: how far the axes reach beyond the first set.
    :raises ValueError: if there is no set.
    :raises ImportError: without matplotlib.
    """
    if not sets:
        raise ValueError("sets is empty, expected points and labels by title")
    figure, panels = new_figure(len(sets), (4.5 * len(sets), 4.2), shared=True)
    for panel, (title, (x, y)) in zip(panels, sets.items(), strict=True):
        panel.scatter(
            x[:, 0].cpu(), x[:, 1].cpu(), s=6, c=y.cpu(), cmap=COLOURS, vmin=0, vmax=9, linewidths=0
        )
        panel.set_title(title)
    first = next(iter(sets.values()))[0].cpu()
    low, high = first.amin(0) - margin, first.amax(0) + margin
    panels[0].set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    return figure
