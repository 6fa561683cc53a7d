"""Figures of learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pyro_scnf.plots._figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curves"]

FEW = 20  # a curve of at most this many points is drawn with markers, so that a single point is visible


def learning_curves(
    curves: Mapping[str, Mapping[int, float]],
    names: Sequence[str] = ("loss", "val_nll", "val_bits_per_dim", "val_error", "grad_norm"),
) -> Figure:
    """Logged quantities against the step, in a panel each.

    :param curves: from :func:`pyro_scnf.analysis.read_log`.
    :param names: which of them to draw, one or several; those that were not logged are left out.
    :raises ValueError: if none of them was logged.
    :raises ImportError: without matplotlib.
    """
    names = [names] if isinstance(names, str) else names
    found = [name for name in names if name in curves]
    if not found:
        raise ValueError(f"names={list(names)}: none of them was logged; there are {list(curves)}")
    figure, panels = new_figure(len(found), (3.2 * len(found), 2.6))
    for panel, name in zip(panels, found, strict=True):
        steps, values = list(curves[name]), list(curves[name].values())
        panel.plot(steps, values, linewidth=1, marker="o" if len(steps) <= FEW else "", markersize=3)
        panel.set(title=name, xlabel="step")
    return figure
