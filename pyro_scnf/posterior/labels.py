"""All label hypotheses of a model, for all posterior draws, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_scnf._numbers import check_number
from pyro_scnf._param_store import param_store_kept
from pyro_scnf._random import drawing_from
from pyro_scnf._shapes import at_least_single, check_tensor
from pyro_scnf.posterior.chains import as_tensors
from pyro_scnf.posterior.draws import check_call
from pyro_scnf.posterior.runs import Runs
from pyro_scnf.sharing import evaluation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["enumerate_labels", "sample_labels"]


@torch.no_grad()
def enumerate_labels(
    model: Callable[..., object],
    args: Sequence[object] = (),
    posterior: Mapping[str, ArrayLike] | None = None,
    *,
    site: str = "y",
    max_plate_nesting: int = 1,
    parallel: bool | None = None,
) -> Tensor:
    r""":math:`\log p(x_n, y_n = k \mid \theta_s)` for every draw, datum and label, in one run of the model.

    The softmax of the result over k gives the class probabilities. Its logsumexp over k is the pointwise
    marginal log-likelihood, and :func:`sample_labels` draws labels from it. The model runs once for all
    draws, and its flow once per x. The draws are fixed *inside* the enumeration. Pyro's
    ``Predictive(infer_discrete(model), posterior_samples)`` silently ignores them.

    Discrete sites that are not observed are enumerated even if the model does not mark them, as NUTS does.
    Discrete sites other than the label are summed out exactly, also those in other plates. For the regime r
    of a group, the label of each member is summed out first, then the members are multiplied. The label of
    one member is tied to the rest of the group by r. Then :math:`x_n` stands for all data in the plates of r:

    .. math:: \log p(x_{group}, y_n = k) = \log \sum_r p(r) \, p(x_n, y_n = k \mid r)
        \prod_{m \ne n} \sum_{y_m} p(x_m, y_m \mid r).

    Its softmax is :math:`p(y_n = k \mid x_{group})`. Its logsumexp is the same for all members.

    Row n of the result is row n of the model's plate, in the order in which the plate was given its rows. A
    plate that draws its rows at random is refused, since nobody could name them. A row that a mask leaves out
    altogether, label and data, has NaN. A row of which only x is masked has :math:`\log p(y_n = k)`. Scales
    (``poutine.scale``, weights of rows, sizes of data sets) say how much a site counts in training. They are
    no part of the number of a row.

    Pyro's parameter store is afterwards as before. A parameter that is not in it begins anew at each call.

    :param model: any Pyro model with a discrete site in a plate. The site may be latent, observed, or partly
        observed through Pyro's ``obs_mask``.
    :param args: positional arguments of the model, as a tuple.
    :param posterior: draws of its continuous latents by site name, ``(S, *plates, *event)``, as tensors or
        arrays. The plates are those around the site; where it has none, dimensions of size 1 may stand, as in
        the draws of Pyro. If the model has no latents, leave it out: S is then 1. Latents of single rows that
        have draws count as known: the result is :math:`\log p(x_n, y_n = k \mid z_{n,s}, \theta_s)`.
        Where the label is observed, it is :math:`\log p(y_n) + \log p(x_n \mid y_n, z_{n,s}, \theta_s)`.
    :param str site: the label. The sites in its plates are counted, summed over any further plates inside
        these (such as the members of a group with one label). If the model has no label, name any observed
        site; the result is then its log-likelihood.
    :param int max_plate_nesting: depth of plates in the model.
    :param parallel: with ``True``, the draws have a batch dimension to the left of the model's plates:
        a global latent of a model with one plate has shape ``(S, 1, *event)``. The model must broadcast over
        it (``Vindex(loc)[..., y]``, not ``loc[y]``). With ``False``, the model runs draw by draw on the
        shapes that it has in training. With ``None``, it runs for all draws at once, and for the first and
        the last draw by themselves. Where the run fails because of its shapes, or the results differ, a
        warning says so and the model runs draw by draw. In each case, a flow that does not depend on the
        draws runs once per x.
    :return: ``(S, N, K)`` in nats and in float64, with one N for each plate of the label; ``(S, N, 1)`` if
        the label is observed.
    :raises ValueError: if the site does not exist or is in no plate; if draws differ in number, belong to no
        site, or are missing for a site; if a plate draws its rows at random, or has other rows in another
        run; if the model draws numbers itself, as far as a second run is compared (``parallel=None`` and
        three draws or more); if a site outside the plates of a label depends on it; or if a site depends on
        labels in two plates that cross, because the sum over these has too many terms.
    """
    check_call(args, max_plate_nesting, parallel)
    draws = {} if posterior is None else as_tensors(posterior, "posterior")
    with evaluation(), param_store_kept():
        tables = Runs(model, args, max_plate_nesting, parallel).tables(draws, site)
    return torch.cat([table.without_masked_rows() for table in tables])


def sample_labels(
    log_joint: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""One label per draw and datum from the ``(S, N, K)`` of :func:`enumerate_labels`.

    :param float temperature: 1 samples the posterior, 0 takes its mode.
    :param generator: source of randomness, on any device; by default the global generator of the tensor's
        device.
    :return: labels ``(S, N)``.
    :raises ValueError: for a negative temperature, or rows that have no probabilities.
    """
    check_tensor(log_joint, "log_joint", "sample_labels")
    if not log_joint.is_floating_point() or not log_joint.dim() or not log_joint.shape[-1]:
        raise ValueError(
            f"log_joint has shape {tuple(log_joint.shape)} and dtype {log_joint.dtype}, expected "
            "log-probabilities (S, N, K)"
        )
    temperature = check_number("temperature", temperature, at_least=0)
    rows = at_least_single(log_joint).log_softmax(-1)
    bad = rows.isnan().any(-1)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"log_joint: row {where} has no probabilities, nor have {int(bad.sum()) - 1} others. A mask may "
            "have left them out of the model; leave them out here too, log_joint[:, rows]"
        )
    if temperature == 0:
        return rows.argmax(-1)
    if not rows.numel():
        return torch.zeros(rows.shape[:-1], dtype=torch.int64, device=rows.device)
    probs = (rows / temperature).softmax(-1)
    with drawing_from(generator, probs.device):
        return torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1).reshape(probs.shape[:-1])
