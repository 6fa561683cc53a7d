"""M1+M2 of Kingma et al. (2014): M2 on the latent codes of M1.

Reference: Kingma, Mohamed, Rezende and Welling, *Semi-supervised Learning with Deep Generative Models*, 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import Tensor

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_at_least, check_kinds, check_number, check_scale, check_whole
from pyro_scnf._random import seeded
from pyro_scnf._shapes import as_sizes
from pyro_scnf.baselines.fitting import Batch, progress, some_rows, train
from pyro_scnf.baselines.kingma2014 import M1, M2
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.datasets.augment import Augment, as_augment

__all__ = ["M1M2"]


class M1M2(PortableModule, PyroModule):
    """M1 and M2, trained one after the other: the semi-supervised classifier of the paper.

    M2 sees codes that are scaled to mean 0 and standard deviation 1, and drawn anew in each step. Networks
    have ReLU activations. Sizes and weights are chosen for trainings of minutes on one CPU core. The paper
    trains much longer, with softplus activations and ``latent_dim=50``, ``style_dim=50``,
    ``hidden=(600, 600)``, ``style_hidden=(500,)``, ``kl_weight=1``, ``alpha=0.1``.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param int num_classes: number of labels K.
    :param int latent_dim: length of a code of M1.
    :param int style_dim: length of a style of M2.
    :param hidden: widths of the hidden layers of M1.
    :param style_hidden: widths of the hidden layers of M2.
    :param float kl_weight: weight of the divergence in the loss of M1. With less weight, a code says more
        about its row. With weight 1, M2 was less accurate on MNIST with 100 labels.
    :param float alpha: weight of the classification of labelled rows, see :class:`M2`. With a small weight,
        M2 may soon find clusters that cut across the classes.
    :raises ValueError: for sizes that are no positive whole numbers, or weights that are not positive.

    >>> from pyro_scnf.datasets import ImageAugment, digits
    >>> data, augment = digits(), ImageAugment(bins=17)
    >>> model = M1M2((1, 8, 8), 10, hidden=(20,), style_hidden=(20,))
    >>> model.fit(data, steps=5, augment=augment)
    >>> model.posterior(augment.prepare(data.x_test[:3])).probs.shape
    torch.Size([3, 10])
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        *,
        latent_dim: int = 32,
        style_dim: int = 16,
        hidden: Sequence[int] = (500, 500),
        style_hidden: Sequence[int] = (200,),
        kl_weight: float = 0.1,
        alpha: float = 20.0,
    ) -> None:
        super().__init__()
        self.kl_weight = check_scale("kl_weight", kl_weight)
        style_hidden = as_sizes(style_hidden, "style_hidden", "widths of hidden layers")
        self.m1 = M1(event_shape, latent_dim, hidden)
        self.m2 = M2(self.m1.latent_dim, num_classes, style_dim, style_hidden, alpha)
        self.register_buffer("center", torch.zeros(self.m1.latent_dim))
        self.register_buffer("spread", torch.ones(self.m1.latent_dim))

    def codes(self, x: Tensor) -> dist.Normal:
        """The codes that M2 sees: a normal distribution of each entry, ``(B, latent_dim)``.

        :param x: rows ``(B, *event_shape)`` in the unit interval.
        :raises ValueError: for rows of another shape or dtype, or outside of the unit interval.
        """
        code = self.m1.encode(x).base_dist
        return dist.Normal((code.loc - self.center) / self.spread, code.scale / self.spread)

    @torch.no_grad()
    def posterior(self, x: Tensor) -> dist.Categorical:
        r"""The label posterior :math:`q(y \mid z_1)` at the mean codes, a ``Categorical`` of batch ``(B,)``.

        :param x: rows ``(B, *event_shape)`` in the unit interval.
        :raises ValueError: as :meth:`codes` does.
        """
        logits = [self.m2.classifier(self.codes(rows).mean) for rows in x.split(1000)]
        return dist.Categorical(logits=torch.cat(logits))

    def fit(
        self,
        data: SemiSupervisedData,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        batch_size: int = 128,
        labelled_batch_size: int = 100,
        m1_lr: float = 2e-3,
        m2_lr: float = 5e-3,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        """Train in place: M1 on all rows for half of the time, then M2.

        Give ``steps`` or ``minutes``. Equal models of equal ``steps`` and ``seed`` become equal. The global
        generators and Pyro's store are afterwards as they were before.

        :param data: training data in the unit interval, unless ``augment`` brings them there.
        :param steps: optimiser steps of M1, and as many of M2.
        :param minutes: wall-clock time in all.
        :param int batch_size: rows of M1 and unlabelled rows of M2 in a step.
        :param int labelled_batch_size: labelled rows of M2 in a step.
        :param float m1_lr: learning rate of Adam for M1. It falls to zero in the second half of the steps.
        :param float m2_lr: that for M2. With 2e-3, M2 learned more slowly.
        :param augment: changes rows before M1 sees them: an :class:`~pyro_scnf.datasets.Augment` or a
            function of x.
        :param int seed: seed of the order of rows and of all noise.
        :raises ValueError: for options out of range; for data of another shape, dtype or number of classes,
            outside of the unit interval, without labelled or without unlabelled rows.
        :raises RuntimeError: if the loss becomes NaN or infinite.
        """
        if (steps is None) == (minutes is None):
            raise ValueError(f"steps={steps!r}, minutes={minutes!r}: give one of them")
        check_at_least(1, steps=1 if steps is None else steps)
        check_number("minutes", 1 if minutes is None else minutes, above=0)
        check_at_least(1, batch_size=batch_size, labelled_batch_size=labelled_batch_size)
        m1_lr, m2_lr = check_scale("m1_lr", m1_lr), check_scale("m2_lr", m2_lr)
        seed = check_whole("seed", seed, 0)
        change = as_augment(augment)
        known = self._check(data, change)
        x, y, others = data.x[known], data.y[known], data.x[~known]
        home, sizes = self.spread.device, (len(x), len(others))

        def first() -> Batch:
            rows = change(some_rows(data.x, batch_size)).to(home)
            return rows, len(data.x), self.kl_weight

        def second() -> Batch:
            chosen = torch.randint(len(x), (labelled_batch_size,), device=x.device)
            with torch.no_grad():
                z = self.codes(change.labelled(x[chosen]).to(home)).sample()
                unlabelled = self.codes(change(some_rows(others, batch_size)).to(home)).sample()
            return z, y[chosen].to(home), unlabelled, sizes

        with seeded(seed, home), pyro.get_param_store().scope():
            train(self.m1, TraceMeanField_ELBO(), first, progress(steps, minutes), m1_lr, len(data.x))
            self._standardise(data.x, change)
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            train(self.m2, elbo, second, progress(steps, minutes), m2_lr, len(data.x))

    def _check(self, data: SemiSupervisedData, change: Augment) -> Tensor:
        """Raise unless the model can learn from ``data``. Return which rows are labelled."""
        check_kinds(data=(data, SemiSupervisedData))
        if data.num_classes != self.m2.num_classes:
            raise ValueError(
                f"data has num_classes={data.num_classes}, expected {self.m2.num_classes} as in the model"
            )
        known = data.y != UNLABELLED
        if known.all() or not known.any():
            raise ValueError(
                f"data has {int(known.sum())} labelled rows of {len(known)}, expected some labelled and some "
                "unlabelled ones"
            )
        self.m1.check(change.prepare(data.x), "data.x")
        return known

    @torch.no_grad()
    def _standardise(self, x: Tensor, change: Augment) -> None:
        """Set the mean and the standard deviation of the codes of all rows."""
        rows = (change.prepare(part).to(self.center.device) for part in x.split(1000))
        codes = [self.m1.encode(part).base_dist for part in rows]
        loc, scale = (torch.cat([getattr(code, name) for code in codes]) for name in ("loc", "scale"))
        self.center.copy_(loc.mean(0))
        self.spread.copy_((loc.var(0, correction=0) + scale.square().mean(0)).sqrt())
