"""Energies of the paths that rows take through continuous flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.transforms import ConditionalContinuousFlow, ContinuousFlow, SolveRecord, record_solves

__all__ = ["continuous_layers", "path_energy"]


def continuous_layers(module: nn.Module) -> int:
    """How many continuous layers ``module`` has."""
    kinds = (ContinuousFlow, ConditionalContinuousFlow)
    return sum(isinstance(part, kinds) for part in module.modules())


def path_energy(flow: SemiConditionalFlow, xs: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """The kinetic energy and the Jacobian energy of all rows, ``(2,)``, summed over continuous layers.

    In the layers of the prior they are the mean over the labels. Inside :func:`~pyro_scnf.share_encoding`
    they cost no further pass: who needs the encodings afterwards finds them.

    :param xs: batches of rows ``(B_i, *event_shape)``.
    :param scales: how many rows of the data set each row of a batch stands for.
    """
    in_prior = continuous_layers(flow.prior)
    entries, rows = continuous_layers(flow.transform) + in_prior, sum(map(len, xs))
    with record_solves(energies=True) as record:
        flow.encode_together(*xs)
        if in_prior:
            flow.scores(*xs)
        else:
            for x in xs:
                flow.encode_flat(x)
    if not _is_whole(record, entries, rows):  # a block around had some of the encodings already
        with record_solves(energies=True) as record:
            z, _ = flow.transform.inverse_and_ladj(torch.cat(list(xs)))
            if in_prior:
                z_f = z[..., flow.transform.aux_dim :].reshape(z.shape[:-1] + flow.latent_shape)
                flow.prior.class_scores(z_f)
    weights = torch.cat([x.new_full((len(x),), scale) for x, scale in zip(xs, scales, strict=True)])
    totals = [
        torch.stack(
            [(energy.reshape(-1, rows).mean(0) * weights).sum() for energy in (e.kinetic, e.jacobian)]
        )
        for e in record.energies
    ]
    return torch.stack(totals).sum(0)


def _is_whole(record: SolveRecord, entries: int, rows: int) -> bool:
    """Whether each of so many layers has recorded all rows together."""
    found = [energies.kinetic.shape[-1] for energies in record.energies]
    return found == [rows] * entries
