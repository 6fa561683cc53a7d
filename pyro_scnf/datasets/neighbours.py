"""Find examples that look alike."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pyro_scnf._numbers import check_flag, check_kinds, check_whole, refuse_unused
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.convert import as_rows
from pyro_scnf.datasets.distances import nearest_rows
from pyro_scnf.datasets.image_features import Features, features_of

__all__ = ["checked_rows", "link_neighbours", "nearest_neighbours"]


def nearest_neighbours(
    x: Tensor,
    k: int = 5,
    features: str | Features | None = None,
    chunk: int | None = None,
    exact: bool | None = None,
) -> Tensor:
    """The numbers of the ``k`` rows nearest to each row, by Euclidean distance between their features.

    The order is that of distances in double precision, whatever the offset and the scale of the features. Of
    rows at the same distance, any may be taken. Beyond 50,000 rows a search takes the place of comparing all
    pairs, and may miss a few of the nearest. Features count by their spread: bring those in different
    units to one scale first.

    :param x: ``(N, *event_shape)``, of any dtype; an array or a data frame is converted.
    :param int k: number of neighbours. A row is not its own neighbour.
    :param features: a word of :data:`FEATURES`, or a function that computes features ``(N, ...)`` from x, of
        each row alone. By default images are compared by their :func:`pixel_features`, whose distances order
        them by angle, and other data as they are.
    :param chunk: rows compared at a time. They need ``chunk * N`` numbers; by default these are 32 million.
        With a ``chunk``, all pairs are compared.
    :param exact: whether to compare all pairs; by default up to 50,000 rows. A search needs the extra
        ``datasets``.
    :return: ``(N, k)``, the nearest row first.
    :raises ValueError: for numbers out of range; for NaN or infinity in x or its features; for features of
        another number of rows; for ``exact=False`` with a ``chunk``.
    :raises ImportError: without usearch, if not all pairs are compared.
    """
    check_whole("chunk", 1 if chunk is None else chunk, 1)
    x = checked_rows(x, k, exact, "nearest_neighbours")
    if exact is not None and not exact:
        refuse_unused("exact=False does not compare all pairs", chunk=chunk)
    return nearest_rows(features_of(x, features, "nearest_neighbours"), int(k), chunk, exact=exact)[0]


def checked_rows(x: Tensor, k: int, exact: bool | None, owner: str) -> Tensor:
    """``x`` as a tensor of rows that have ``k`` neighbours. The arguments are those of nearest_neighbours."""
    check_whole("k", k, 1)
    if exact is not None:
        check_flag(exact=exact)
    x = as_rows(x, "x", owner)
    if k >= len(x):
        raise ValueError(f"k={k}: there are {len(x)} rows, so at most {max(len(x) - 1, 0)} neighbours")
    return x


def link_neighbours(
    data: SemiSupervisedData, k: int = 5, features: str | Features | None = None
) -> SemiSupervisedData:
    """``data`` with the :func:`nearest_neighbours` of every training row.

    :func:`pyro_scnf.training.fit` then makes every batch of pairs of neighbours, for training terms such as
    :class:`~pyro_scnf.terms.Agreement`, which assumes that the two rows of a pair share their label.
    Neighbours are found among labelled and unlabelled rows alike, without use of the labels.

    :param data: a data set from which no more rows will be held out.
    :param int k: number of neighbours of each row.
    :param features: see :func:`nearest_neighbours`.
    :raises ValueError: as :func:`nearest_neighbours` does.
    """
    check_kinds(data=(data, SemiSupervisedData))
    return replace(data, neighbours=nearest_neighbours(data.x, k, features))
