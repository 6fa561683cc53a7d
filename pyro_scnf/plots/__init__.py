"""Figures of what :mod:`pyro_scnf.analysis` and :mod:`pyro_scnf.posterior` compute (extra ``plots``).

Every function returns a matplotlib ``Figure``. It is made without ``pyplot``, so no backend is chosen, and
nothing is shown or kept open. Save the figure with ``figure.savefig(path)``.
"""

from pyro_scnf.plots.boundary import decision_boundary
from pyro_scnf.plots.curves import learning_curves
from pyro_scnf.plots.grid import image_grid
from pyro_scnf.plots.latent_plane import latent_plane
from pyro_scnf.plots.points import labelled_points
from pyro_scnf.plots.reliability import reliability_diagram
from pyro_scnf.plots.sbc_ranks import sbc_ranks

__all__ = [
    "decision_boundary",
    "image_grid",
    "labelled_points",
    "latent_plane",
    "learning_curves",
    "reliability_diagram",
    "sbc_ranks",
]
