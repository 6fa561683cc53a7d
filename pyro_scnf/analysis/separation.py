"""How far latents are from the boundary between two classes."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scnf._modes import evaluating
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import in_double, reference_tensor
from pyro_scnf.analysis.label_probs import check_rows
from pyro_scnf.distributions import Independent
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.priors import GaussianMixturePrior

__all__ = ["boundary_distance"]

TOLERANCE = 1e-6
"""Relative difference up to which scales, and probabilities, count as equal."""


@torch.no_grad()
def boundary_distance(model: SemiSupervisedModel, x: Tensor, *, batch_size: int = 1000) -> Tensor:
    r"""How far the latents of data are from the hyperplane between the two closest means.

    .. math:: d(x) = \frac{\left| \lVert \mu' - z_f \rVert^2 - \lVert \mu'' - z_f \rVert^2 \right|}
        {2\, \lVert \mu' - \mu'' \rVert}

    where :math:`\mu'` and :math:`\mu''` are the two means closest to :math:`z_f`. In a mixture of Gaussians
    of one isotropic scale with a uniform :math:`p(y)`, this hyperplane is where the model's decision changes
    from one of these classes to the other. With more than two classes a third one may have a boundary that
    is closer.

    :param model: a model whose prior is a Gaussian mixture of one component a class, all of one isotropic
        scale, and whose class probabilities are uniform.
    :param x: data ``(N, *event_shape)``.
    :param int batch_size: rows encoded at a time.
    :return: ``(N,)`` in units of the latent space, in double precision, on the CPU.
    :raises ValueError: for another prior, for other class probabilities, for one class, or for classes that
        have the same mean; for data that the flow refuses.

    Reference: Izmailov et al., 2020, section 6.2 and Figure 3c.
    """
    check_at_least(1, batch_size=batch_size)
    check_rows(model, x, "boundary_distance")
    means, device = _means(model), reference_tensor(model).device
    found = []
    for rows in x.split(int(batch_size)):
        rows = model.flow.check_data(rows.to(device), "x", "boundary_distance")
        with evaluating(model.flow):
            z = in_double(model.flow.encode(rows)[1]).flatten(1)
        # Not by way of a matrix product, which would round the distances of far latents.
        distances = torch.cdist(z, means, compute_mode="donot_use_mm_for_euclid_dist")
        first, second = means[distances.topk(2, largest=False).indices].unbind(1)
        gap = first - second
        # The numerator over 2 is this inner product. It loses no digits where the two squares are large.
        found.append(((z - (first + second) / 2) * gap).sum(-1).abs() / gap.norm(dim=-1))
    return torch.cat(found).cpu().double()


def _means(model: SemiSupervisedModel) -> Tensor:
    """The means ``(K, D)`` of the classes, if the boundaries between them are hyperplanes half way."""
    prior = model.flow.prior
    expected = "expected a GaussianMixturePrior of one component a class, all of one isotropic scale"
    if not isinstance(prior, GaussianMixturePrior):
        raise ValueError(f"model: its prior is a {type(prior).__name__}, {expected}")
    if prior.num_classes < 2:
        raise ValueError("model: it has 1 class, expected at least 2, which have a boundary")
    given = prior.condition(torch.arange(prior.num_classes, device=reference_tensor(model).device))
    if not isinstance(given, Independent) or not isinstance(given.base_dist, dist.Normal):
        raise ValueError(f"model: its prior has several components a class, or a full covariance, {expected}")
    scales = given.stddev
    if bool((scales - scales.mean()).abs().max() > TOLERANCE * scales.mean()):
        raise ValueError(
            f"model: the scales of its prior are from {float(scales.min()):.4g} to "
            f"{float(scales.max()):.4g}, {expected}, as with covariance='isotropic' and fit_scales='fixed'"
        )
    probs = model.class_probs.log_probs.exp()
    if bool((probs - probs.mean()).abs().max() > TOLERANCE):
        raise ValueError(
            "model: its class probabilities are not uniform, so its decision does not change half way "
            "between two means; expected class_probs='uniform'"
        )
    means = in_double(given.mean).flatten(1)
    if bool((torch.pdist(means) == 0).any()):
        raise ValueError("model: two classes have the same mean, so there is no boundary between them")
    return means
