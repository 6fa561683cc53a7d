"""2-D toys, and the handwritten digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from pyro_scnf._extras import require
from pyro_scnf._numbers import (
    check_at_least,
    check_number,
    check_scale,
    check_whole,
    check_word,
    refuse_unused,
)
from pyro_scnf.datasets.base import SemiSupervisedData
from pyro_scnf.datasets.splits import Numbers, Shares, as_counts, as_shares, draw_labels, thin_classes

__all__ = ["TOYS", "digits", "toy"]

Points = tuple[np.ndarray, np.ndarray]
"""Points of the plane ``(N, 2)`` and their labels ``(N,)``."""


def _pinwheel(n: int, noise: float, rng: np.random.Generator) -> Points:
    """Five arms, one a class. Each is a Gaussian, stretched along its radius and twisted about the origin."""
    arms = 5
    y = rng.integers(arms, size=n)
    points = rng.normal(size=(n, 2)) * [0.3, noise] + [1.0, 0.0]
    angle = 2 * np.pi * y / arms + 0.25 * np.exp(points[:, 0])
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(n, 2, 2)
    return 2 * np.einsum("ni,nij->nj", points, rotation), y


def _eight_gaussians(n: int, noise: float, rng: np.random.Generator) -> Points:
    """Eight Gaussians on a circle of radius 2, one a class."""
    y = rng.integers(8, size=n)
    angle = 2 * np.pi * y / 8
    return 2 * np.stack([np.cos(angle), np.sin(angle)], -1) + noise * rng.normal(size=(n, 2)), y


def _moons(n: int, noise: float, seed: int) -> Points:
    return require("sklearn.datasets", "datasets").make_moons(n, noise=noise, random_state=seed)


def _circles(n: int, noise: float, seed: int, factor: float = 0.2) -> Points:
    make_circles = require("sklearn.datasets", "datasets").make_circles
    return make_circles(n, noise=noise, factor=factor, random_state=seed)


def _seeded(draw: Callable[[int, float, np.random.Generator], Points]) -> Callable[[int, float, int], Points]:
    return lambda n, noise, seed: draw(n, noise, np.random.default_rng(seed))


TOYS: dict[str, tuple[Callable[[int, float, int], Points], int]] = {
    "moons": (_moons, 2),
    "circles": (_circles, 2),
    "pinwheel": (_seeded(_pinwheel), 5),
    "eight_gaussians": (_seeded(_eight_gaussians), 8),
}
"""Toy data sets by name: a function ``draw(n, noise, seed)``, and the number of classes."""


def toy(
    name: str,
    *,
    num_train: int = 1000,
    num_test: int = 500,
    labels_per_class: int | Numbers = 5,
    noise: float = 0.1,
    factor: float | None = None,
    shares: Shares | None = None,
    seed: int = 0,
) -> SemiSupervisedData:
    """A 2-D toy data set, not standardised.

    With the default sizes and noise, ``moons`` and ``circles`` are those of Atanov et al. (2019), Table 1.
    Those of Izmailov et al. (2020), Table 7, have ``noise=0.05``, and circles ``factor=0.4``. No model can
    have a lower expected test NLL than the differential entropy of the points, in nats:

    ============  ==========  ===========  ========
    toy           ``noise``   ``factor``   entropy
    ============  ==========  ===========  ========
    ``moons``     0.1                      1.009
    ``circles``   0.1         0.2          0.804
    ``moons``     0.05                     0.291
    ``circles``   0.05        0.4          0.494
    ============  ==========  ===========  ========

    :param name: one of :data:`TOYS`.
    :param int num_train: training points, labelled and unlabelled.
    :param int num_test: test points.
    :param labels_per_class: labels to keep of each class: one number, or a number for each class, where 0
        leaves a class without labels.
    :param float noise: standard deviation of the noise.
    :param float factor: radius of the inner circle; that of the outer one is 1. It is 0.2 by default, below
        1, and only for ``circles``.
    :param shares: the share of the training points of each class that stays, see :func:`thin_classes`. By
        default all stay. Test points all stay.
    :param int seed: seed of the points and of the choice of labels.
    :raises ValueError: for an unknown name; for fewer training or test points than classes; for a negative
        ``noise``; for a ``factor`` of another toy, or out of range; if a class has fewer points than
        ``labels_per_class``; for ``shares`` that :func:`thin_classes` refuses.

    References: Atanov et al., *Semi-conditional normalizing flows for semi-supervised learning*, 2019;
    Izmailov et al., *Semi-supervised learning with normalizing flows*, 2020.
    """
    check_word("name", name, TOYS)
    draw, num_classes = TOYS[name]
    check_at_least(num_classes, num_train=num_train, num_test=num_test)
    _check_choice(labels_per_class, shares, seed, num_classes)
    if factor is not None:
        if name != "circles":
            refuse_unused("only circles have a factor", factor=factor)
        draw = partial(_circles, factor=check_number("factor", factor, at_least=0, below=1))
    x, y = draw(int(num_train) + int(num_test), check_scale("noise", noise, zero=True), int(seed))
    return _split(x, y, num_test, labels_per_class, shares, seed, num_classes)


def digits(
    *,
    labels_per_class: int | Numbers = 10,
    num_test: int = 360,
    shares: Shares | None = None,
    seed: int = 0,
) -> SemiSupervisedData:
    """The 1797 handwritten digits that scikit-learn ships: 8×8 images of 17 grey levels (0..16).

    Pixels are whole numbers in float32. Dequantise them with :func:`~pyro_scnf.transforms.dequantize` and
    ``bins=17``.

    :param labels_per_class: labels to keep of each class: one number, or a number for each class, where 0
        leaves a class without labels.
    :param int num_test: test images.
    :param shares: the share of the training images of each class that stays, see :func:`thin_classes`. By
        default all stay.
    :param int seed: seed of the split and of the choice of labels.
    :raises ValueError: if a class has fewer images than ``labels_per_class``, or if ``num_test`` leaves none
        of a class to test or to train on; for ``shares`` that :func:`thin_classes` refuses.

    Reference: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998.
    """
    _check_choice(labels_per_class, shares, seed, 10)
    data = require("sklearn.datasets", "datasets").load_digits()
    check_whole("num_test", num_test, 10, len(data.target) - 10)
    return _split(data.images[:, None], data.target, num_test, labels_per_class, shares, seed, 10)


def _check_choice(labels_per_class: object, shares: object, seed: int, num_classes: int) -> None:
    """Raise for what cannot be, before data are drawn or read: NumPy would name another argument."""
    as_counts("labels_per_class", labels_per_class, torch.ones(num_classes))
    if shares is not None:
        as_shares(shares, num_classes)
    check_whole("seed", seed, 0, 2**32 - 1)


def _split(
    x: np.ndarray,
    y: np.ndarray,
    num_test: int,
    labels_per_class: int | Numbers,
    shares: Shares | None,
    seed: int,
    num_classes: int,
) -> SemiSupervisedData:
    """Split into training and test rows, stratified by class. Thin the classes, and hide most labels."""
    selection = require("sklearn.model_selection", "datasets")
    parts = selection.train_test_split(
        x.astype(np.float32), y.astype(np.int64), test_size=int(num_test), random_state=int(seed), stratify=y
    )
    x_train, x_test, y_train, y_test = map(torch.from_numpy, parts)
    if shares is not None:
        x_train, y_train = thin_classes(x_train, y_train, shares, seed)
    counts = as_counts("labels_per_class", labels_per_class, torch.bincount(y_train, minlength=num_classes))
    labels = draw_labels(y_train, counts, f"labels_per_class={labels_per_class}", seed)
    return SemiSupervisedData(x_train, labels, x_test, y_test, num_classes)
