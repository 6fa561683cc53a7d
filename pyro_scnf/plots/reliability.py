"""Confidence against accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pyro_scnf.analysis import Reliability
from pyro_scnf.plots._figure import drawable, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reliability_diagram"]


def reliability_diagram(found: Reliability | Mapping[str, Reliability]) -> Figure:
    """Two panels: accuracy against confidence, and the number of rows in each bin of confidence.

    On the dashed diagonal a model is calibrated. Below it the model is too sure. A bin without rows has no
    point and no bar.

    :param found: from :func:`pyro_scnf.analysis.reliability`; several by title, such as ``{"before": ...,
        "after": ...}``, are drawn in colours of their own.
    :raises ValueError: for something else, or for nothing.
    :raises ImportError: without matplotlib.
    """
    several = found if isinstance(found, Mapping) else {"": found}
    expected = "expected a Reliability, or some by title"
    if not several:
        raise ValueError(f"found is empty, {expected}")
    for title, one in several.items():
        if not isinstance(one, Reliability):
            name = f"found[{title!r}]" if isinstance(found, Mapping) else "found"
            raise ValueError(f"{name} is of type {type(one).__name__}, {expected}")
    figure, (accuracy, counts) = new_figure(2, (10, 4.2))
    accuracy.plot([0, 1], [0, 1], color="0.6", linestyle="dashed")
    for number, (title, one) in enumerate(several.items()):
        filled, bins = drawable(one.count) > 0, len(one.count)
        accuracy.plot(
            drawable(one.confidence)[filled], drawable(one.accuracy)[filled], marker="o", label=title
        )
        left = (np.arange(bins) + number / len(several)) / bins
        counts.bar(left, drawable(one.count), width=1 / bins / len(several), align="edge", label=title)
    accuracy.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    counts.set(xlabel="confidence", ylabel="rows", xlim=(0, 1), yscale="log")
    if isinstance(found, Mapping):
        accuracy.legend(loc="upper left", fontsize=8)
    return figure
