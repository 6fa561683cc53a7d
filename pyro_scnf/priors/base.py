r"""The interface of a class-conditional prior :math:`p(z_f \mid y)`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.conditional import ConditionalDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import am_i_wrapped, get_plates
from torch import Tensor

from pyro_scnf._checks import check_alike, check_context, check_finite, check_row_labels
from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_at_least, check_whole
from pyro_scnf._shapes import as_event_shape, check_event, common_batch

__all__ = ["ClassConditionalPrior"]


@ConditionalDistribution.register
class ClassConditionalPrior(PortableModule):
    r"""Base class of the priors :math:`p(z_f \mid y)`: a Pyro ``ConditionalDistribution``.

    A subclass defines :meth:`condition`, often in a few lines; see *Writing your own prior* in the
    documentation. A prior :math:`p(z_f \mid y, c)` also depends on covariates c, which are real vectors. Its
    :meth:`condition` and :meth:`initialize` take them as the argument ``covariates``.

    :param event_shape: shape of :math:`z_f`, ``(D,)`` or ``(C, H, W)``.
    :param int num_classes: number of labels K.
    :param int covariates: how many covariates the prior depends on, none by default.
    :raises ValueError: for fewer than one class.
    """

    def __init__(self, event_shape: Sequence[int] | int, num_classes: int, covariates: int = 0) -> None:
        super().__init__()
        check_at_least(1, num_classes=num_classes)
        self.event_shape = as_event_shape(event_shape)
        self.num_classes = num_classes
        self.covariates = check_whole("covariates", covariates, 0)

    def condition(
        self, y: Tensor, temperature: float = 1.0, covariates: Tensor | None = None
    ) -> TorchDistributionMixin:
        r"""The distribution of :math:`z_f` given ``y``.

        :param y: integer labels ``(*batch,)``, or floating class weights ``(*batch, K)``, one-hot or
            relaxed. With relaxed weights the prior interpolates its parameters between the classes.
        :param float temperature: factor on the scale of the noise. Below 1, samples are cleaner.
        :param covariates: ``(*batch, D)``, if the prior takes any. A prior without covariates gets none, and
            need not have this argument. The batch shapes of y and covariates broadcast.
        :return: a Pyro distribution with the batch shape of ``y`` and the event shape ``event_shape``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define condition")

    def initialize(self, z_f: Tensor, y: Tensor, covariates: Tensor | None = None) -> None:
        """Set data-dependent parameters from a batch of latents. By default there are none.

        :param z_f: latents ``(B, *event_shape)``.
        :param y: their labels ``(B,)``, -1 where unknown.
        :param covariates: ``(B, D)``, if the prior takes any.
        """

    def check_start(self, y: Tensor) -> None:
        """Raise if :meth:`initialize` cannot use these labels. A flow asks before it changes anything.

        :param y: labels ``(B,)``, -1 where unknown.
        """

    def class_log_prob(self, z_f: Tensor, covariates: Tensor | None = None) -> Tensor:
        r""":math:`\log p(z_f \mid y = k)` for every k in one batched call, ``(*batch, K)``, in nats.

        :param z_f: latents ``(*batch, *event_shape)``.
        :param covariates: ``(*batch, D)``, if the prior has any. The batch shapes of both broadcast.
        """
        given = self.check_covariates(covariates)
        if not z_f.numel():  # PyTorch's Independent cannot score a batch of no rows
            return z_f.new_zeros((*self._batch_with_tables(z_f, **given), self.num_classes))
        labels = self._labels(z_f, **given)
        found = self.condition(labels, 1.0, **given).log_prob(z_f)
        expected = labels.shape[:1] + self._batch_with_tables(z_f, **given)
        if found.shape != expected:
            raise ValueError(
                f"{type(self).__name__}: log_prob of condition(y) has shape {tuple(found.shape)} for labels "
                f"{tuple(labels.shape)} and latents {tuple(z_f.shape)}, expected {tuple(expected)}; it has "
                "to return a distribution with the batch shape of y and the event shape "
                f"{tuple(self.event_shape)} (pyro_scnf.testing.check_prior tests a prior)"
            )
        return found.movedim(0, -1)

    def class_scores(self, z_f: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r""":meth:`class_log_prob` in two parts: what all labels share, ``(*batch,)``, and the rest.

        The rest, ``(*batch, K)``, is 0 for the most probable label. Far from all classes,
        :math:`\log p(z_f \mid y = k)` is millions of nats, and float32 would round the differences between
        labels away. The mixtures and the flow therefore sum over the components of :math:`z_f` in float64.
        """
        given = self.check_covariates(covariates)
        table = (self._wide_class_log_prob if z_f.numel() else self.class_log_prob)(z_f, **given)
        shared = table.amax(-1)
        return shared.to(z_f.dtype), (table - shared[..., None]).to(z_f.dtype)

    def _wide_class_log_prob(self, z_f: Tensor, covariates: Tensor | None = None) -> Tensor:
        """:meth:`class_log_prob`, in a precision in which differences between labels survive."""
        return self.class_log_prob(z_f) if covariates is None else self.class_log_prob(z_f, covariates)

    def check_covariates(self, covariates: Tensor | None, rows: int | None = None) -> dict[str, Tensor]:
        """Raise unless these are covariates of this prior. Return them as an argument by name, if any.

        :param covariates: ``(*batch, D)`` in the dtype of the prior, ``None`` for a prior without covariates.
        :param int rows: how many rows there must be, if each datum needs one.
        :raises ValueError: if they are missing, not expected, of a wrong shape or dtype, or not finite.
        """
        owner, count = type(self).__name__, self.covariates
        if covariates is None:
            if count:
                raise ValueError(
                    f"{owner}: covariates are missing, and the prior was built with covariates={count}; give "
                    f"covariates=c of shape (*batch, {count}). A SemiSupervisedModel has none to pass on: "
                    "write the Pyro model yourself, with flow.condition(y, covariates=c)"
                )
            return {}
        if not count:
            raise ValueError(
                f"{owner}: got covariates, and the prior takes none; leave them out, or build a prior that "
                "takes them, such as prior='flow:covariates=3' for three covariates"
            )
        batch = check_event(covariates, torch.Size((count,)), "covariates", owner)
        if rows is not None and batch != (rows,):
            raise ValueError(
                f"{owner}: covariates has shape {tuple(covariates.shape)}, expected ({rows}, {count}), a row "
                "for each datum"
            )
        covariates = check_alike(covariates, next(self.parameters(), None), owner, "covariates")
        check_finite(covariates, "covariates", owner)
        return {"covariates": covariates}

    def _batch_of(self, z_f: Tensor, covariates: Tensor | None = None) -> torch.Size:
        """Raise unless ``z_f`` holds latents. Return their batch shape, with that of the covariates."""
        batch = check_event(z_f, self.event_shape, "z_f", type(self).__name__)
        if covariates is None:
            return batch
        expected = "a row of covariates for each datum"
        return common_batch(type(self).__name__, expected, z_f=batch, covariates=covariates.shape[:-1])

    @property
    def _batch_of_tables(self) -> torch.Size:
        """The batch shape of the parameters: ``()`` unless one of them is a random site, drawn many times."""
        return torch.Size()

    def _batch_with_tables(self, z_f: Tensor, covariates: Tensor | None = None) -> torch.Size:
        return torch.broadcast_shapes(self._batch_of(z_f, covariates), self._batch_of_tables)

    def _labels(self, z_f: Tensor, covariates: Tensor | None = None) -> Tensor:
        """All labels, ``(K, 1, ...)``, with an axis for each batch dimension of data and parameters."""
        batch = self._batch_with_tables(z_f, covariates)
        return torch.arange(self.num_classes, device=z_f.device).reshape((-1,) + (1,) * len(batch))

    def _check(self, y: Tensor) -> Tensor:
        """Raise unless ``y`` holds labels or class weights, as :meth:`condition` takes them."""
        plates = {frame.dim: frame.size for frame in get_plates()} if am_i_wrapped() else None
        return check_context(y, self.num_classes, f"{type(self).__name__}.condition", plates)

    def _check_rows(self, z_f: Tensor, y: Tensor) -> Tensor:
        """Raise unless ``z_f`` is finite and ``y`` holds its labels, or -1. Return ``y`` as int64."""
        owner = f"{type(self).__name__}.initialize"
        check_finite(z_f, "z_f", owner)
        return check_row_labels(y, len(z_f), self.num_classes, owner)
