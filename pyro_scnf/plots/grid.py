"""Images in rows and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_scnf._shapes import check_tensor
from pyro_scnf.plots._figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["image_grid"]


def image_grid(images: Tensor, *, rows: str = "", columns: str = "") -> Figure:
    """Images in a table, two white pixels apart.

    :param images: ``(rows, columns, C, H, W)`` in the unit interval, C = 1 or 3. Values outside are clamped.
        One channel is drawn as ink: 1 is black.
    :param str rows: what the rows are.
    :param str columns: what the columns are.
    :raises ValueError: for another shape, without images, for integers, or for NaN.
    :raises ImportError: without matplotlib.
    """
    check_tensor(images, "images", "image_grid")
    if images.dim() != 5 or images.shape[2] not in (1, 3):
        raise ValueError(
            f"images has shape {tuple(images.shape)}, expected (rows, columns, C, H, W) with C = 1 or 3"
        )
    if not images.is_floating_point() and images.dtype != torch.bool:
        raise ValueError(
            f"images has dtype {images.dtype}, expected floating numbers in the unit interval; for grey "
            "levels 0..255, give images / 255 or transforms.dequantize(images, 256)"
        )
    if not images.numel():
        raise ValueError(f"images has shape {tuple(images.shape)}, expected at least one image")
    if bool(images.isnan().any()):
        raise ValueError(
            f"images holds {int(images.isnan().sum())} NaN, expected values in the unit interval"
        )
    shown = images.detach().cpu().float().clamp(0, 1)
    shown = shown if shown.shape[2] == 3 else 1 - shown
    tiles = F.pad(shown, (1, 1, 1, 1), value=1.0)  # white
    down, across, channels, height, width = tiles.shape
    canvas = tiles.permute(0, 3, 1, 4, 2).reshape(down * height, across * width, channels).numpy()
    figure, (panel,) = new_figure(1, (0.5 * across + 0.5, 0.5 * down + 0.5))
    panel.imshow(canvas if channels == 3 else canvas[..., 0], cmap="gray", vmin=0, vmax=1)
    panel.set(xticks=[], yticks=[], xlabel=columns, ylabel=rows)
    return figure
