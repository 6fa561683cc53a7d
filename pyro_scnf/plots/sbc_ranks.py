"""Ranks of simulation-based calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyro_scnf._numbers import check_kinds
from pyro_scnf.plots._figure import drawable, new_figure
from pyro_scnf.posterior import SBCResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["sbc_ranks"]


def sbc_ranks(found: SBCResult, level: float = 0.95) -> Figure:
    """A panel for each component: the ECDF of its ranks less that of uniform ranks, and its band.

    If inference is right, each curve stays within its grey band with probability ``level``. A curve first
    above and then below it has posteriors that are too narrow; the reverse, too wide. A curve on one side has
    posteriors that are shifted. The title states how many central 50, 80 and 95 % intervals hold the truth.

    :param found: from :func:`pyro_scnf.posterior.sbc`.
    :param float level: the probability that a right curve stays within its band at all points.
    :raises ValueError: for something else than a result, or a level that is not between 0 and 1.
    :raises ImportError: without matplotlib.
    """
    check_kinds(found=(found, SBCResult))
    low, high = map(drawable, found.band(level))
    curves, coverage = drawable(found.ecdf_difference()), drawable(100 * found.coverage())
    share = np.arange(1, found.num_draws + 1) / (found.num_draws + 1)
    columns = min(4, len(found.names))
    rows = math.ceil(len(found.names) / columns)
    figure, panels = new_figure(columns, (3 * columns, 2.6 * rows), rows=rows, shared=True)
    for panel in panels[len(found.names) :]:
        panel.set_axis_off()
    for panel, name, curve, held in zip(panels, found.names, curves, coverage.T, strict=False):
        panel.fill_between(share, low, high, color="0.85")
        panel.plot(share, curve)
        panel.axhline(0, color="0.6", linestyle="dashed")
        panel.set_title(f"{name}: {' / '.join(f'{percent:.0f}' for percent in held)} %", fontsize=9)
    figure.supxlabel("rank / (draws + 1)", fontsize=9)
    figure.supylabel("ECDF - uniform", fontsize=9)
    return figure
