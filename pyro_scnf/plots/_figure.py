"""New matplotlib figures, and the tensors they draw. pyplot does not know the figures and keeps none open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_scnf._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["class_colours", "drawable", "new_figure"]


def new_figure(panels: int, size: tuple[float, float], *, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches with panels in a row.

    :param bool shared: whether the panels share both axes.
    :raises ImportError: without matplotlib.
    """
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False, sharex=shared, sharey=shared)
    return figure, list(grid[0])


def drawable(x: Tensor) -> Tensor:
    """``x`` as matplotlib can read it: without gradients, on the CPU, in float32."""
    return x.detach().cpu().float()


def class_colours(num_classes: int) -> Tensor:
    """A colour for each class, ``(K, 3)``: red, green and blue in the unit interval.

    :raises ImportError: without matplotlib.
    """
    maps = require("matplotlib", "plots").colormaps
    if num_classes <= 20:
        return torch.tensor(maps["tab10" if num_classes <= 10 else "tab20"].colors[:num_classes])
    return torch.tensor(maps["turbo"](torch.linspace(0, 1, num_classes).numpy())[:, :3], dtype=torch.float32)
