"""New matplotlib figures. pyplot does not know them, so it does not keep them open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_scnf._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "new_figure"]

COLOURS = "tab10"
"""The colour map of class labels."""


def new_figure(panels: int, size: tuple[float, float], *, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches with panels in a row.

    :param bool shared: whether the panels share both axes.
    :raises ImportError: without matplotlib.
    """
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False, sharex=shared, sharey=shared)
    return figure, list(grid[0])
