"""Simulation-based calibration: does inference find the parameters that made the data?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor

from pyro_scnf._numbers import check_at_least, check_whole
from pyro_scnf._random import seeded
from pyro_scnf.posterior.chains import read_draws
from pyro_scnf.posterior.draws import Site, check_call, is_term, plates_of, sample_sites
from pyro_scnf.posterior.sbc_labels import rank_label
from pyro_scnf.posterior.sbc_result import SBCResult

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["sbc"]

Values = Mapping[str, Tensor]
Quantity = Callable[[Values, Values], Tensor | float]


def sbc(
    model: Callable[..., object],
    infer: Callable[..., Mapping[str, ArrayLike] | MCMC],
    args: Sequence[object] = (),
    *,
    observed: str | Sequence[str],
    num_simulations: int,
    seed: int = 0,
    start: int = 0,
    sites: Sequence[str] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    label: str | None = None,
    thin: int | None = None,
    max_plate_nesting: int = 1,
    parallel: bool | None = None,
) -> SBCResult:
    r"""Simulation-based calibration of a model and its inference.

    Each simulation draws latents and data from the model, infers the latents from the data alone, and ranks
    each true value among the posterior draws. If inference is right, and its draws are independent, the ranks
    are uniform on 0 to S. A guide that is too narrow, a sampler that has not mixed, or inference with another
    model than the one that made the data bends their distribution.

    A simulation is a function of ``seed`` and its number alone, as far as ``infer`` draws from PyTorch's
    generator of the CPU. The model is on the CPU. Each simulation starts with an empty parameter store. Run
    some of them in each call or process with ``start``, and put them together with :meth:`SBCResult.merge`.

    :param model: a generative model. ``model(*args)`` draws everything and observes nothing.
    :param infer: ``infer(conditioned_model, *args)`` returns posterior draws ``{site: (S, *plates, *event)}``
        or an ``MCMC`` object. S is the same in each simulation.
    :param args: positional arguments of the model, as a tuple.
    :param observed: the names of the sites that are the data.
    :param int num_simulations: how many simulations to run.
    :param int seed: seed of the simulations.
    :param int start: the number of the first one.
    :param sites: the latents to rank; by default all continuous ones. Discrete sites are never ranked.
    :param quantities: functions ``fn(values, data)`` by name, which return one number. ``values`` holds the
        latents of one draw, or the true ones, by site; ``data`` the observed sites. Take the log-likelihood:
        ranks of parameters alone miss inference that ignores the data (Modrák et al., 2023).
    :param label: the name of an enumerated label. For each draw, the labels of all rows are drawn anew given
        the data. Two kinds of numbers of the simulated labels are then ranked among those of the drawn ones:
        :math:`\sum_n \log p(y_n \mid x, \theta)`, which is too small if labels are too sure, and how many
        rows each class has. Class probabilities, averaged over the draws, are kept beside the simulated ones.
    :param int thin: how many draws to keep, evenly spread. ArviZ's smallest bulk ESS of the ranked latents is
        kept in ``ess``, that of all chains together. Draws are nearly independent if it is ``thin`` or more.
    :param int max_plate_nesting: depth of plates in the model, for ``label``.
    :param parallel: as in :func:`pyro_scnf.enumerate_labels`, for ``label``.
    :return: ranks, truths and label probabilities. Ties are broken at random.
    :raises ValueError: if the model observes something, has a ``pyro.param``, or lacks a named site; if no
        latent is left to rank; for a discrete one in ``sites``; for draws of other shapes or of none of
        the sites; if S or the size of a latent differs between simulations; for numbers that are NaN.
    :raises RuntimeError: if ``infer`` fails, with the number of the simulation. None is left out.

    Source: Talts et al. (2018), https://arxiv.org/abs/1804.06788; Modrák et al. (2023),
    https://arxiv.org/abs/2211.02383; Säilynoja et al. (2022), https://arxiv.org/abs/2103.10522.
    """
    check_call(args, max_plate_nesting, parallel)
    check_at_least(1, num_simulations=num_simulations)
    check_at_least(0, seed=seed, start=start)
    thin = None if thin is None else check_whole("thin", thin, 2)
    data_names = [observed] if isinstance(observed, str) else list(observed)
    _check_quantities(quantities)
    results: list[SBCResult] = []
    for number in range(start, start + num_simulations):
        where = f"simulation {number} of seed {seed}"
        key = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
        with seeded(int(key >> np.uint64(1))), pyro.get_param_store().scope():
            found = _simulate(model, args)
            latents = _latents(found, data_names, sites, label)
            data = {name: found[name]["value"].detach() for name in data_names}
            conditioned = poutine.condition(model, data=data)
            try:
                draws, chains = read_draws(infer(conditioned, *args), None, False, owner="infer")
            except Exception as error:
                raise RuntimeError(f"{where}: infer failed: {error}") from error
            # A guide has auxiliary sites too, such as share_unconstrained. Predictive draws data and labels.
            known = [name for name in draws if name in found and name not in data]
            draws = {name: draws[name].detach().cpu() for name in known if not _is_discrete(found[name])}
            needed = latents if label is None else _continuous(found, data_names)  # enumeration needs all
            _check_draws(draws, found, needed, where)
            ess = probs = labels = None
            if thin is not None:
                draws, ess = _thinned(draws, latents, thin, chains)
            names, true, drawn = _components(found, latents, draws, quantities or {}, data, where)
            if label is not None:
                try:
                    ranked = rank_label(conditioned, args, draws, found, label, max_plate_nesting, parallel)
                except Exception as error:
                    error.add_note(f"This happened in {where}.")
                    raise
                names += ranked.names
                true, drawn = torch.cat([true, ranked.truth]), torch.cat([drawn, ranked.drawn], 1)
                probs, labels = ranked.log_probs[None], ranked.values[None]
            ranks = _ranks(true, drawn)
        _check_same((len(drawn), names), results, where)
        one = torch.tensor([number]), ranks[None], true[None], ess, probs, labels
        results.append(SBCResult(int(seed), len(drawn), names, *one))
    return reduce(SBCResult.merge, results)


def _check_quantities(quantities: object) -> None:
    named = {} if quantities is None else quantities
    if not isinstance(named, Mapping) or not all(map(callable, named.values())):
        raise ValueError("quantities: expected functions fn(values, data) by name, such as {'total': fn}")


def _simulate(model: Callable[..., object], args: Sequence[object]) -> dict[str, Site]:
    """The sites of a run of the model, which observes nothing and has no parameters in Pyro's store."""
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(*args)
    params = [k for k, v in trace.nodes.items() if v["type"] == "param" and "$$$" not in k]
    if params:
        raise ValueError(f"model has parameters {params} in Pyro's store, expected fixed tensors")
    return sample_sites(trace)


def _latents(
    found: Mapping[str, Site], observed: Sequence[str], sites: Sequence[str] | None, label: str | None
) -> list[str]:
    """The names of the latents to rank."""
    for name, given in (("observed", observed), ("sites", sites or ()), ("label", [label] if label else [])):
        if isinstance(given, str):
            raise ValueError(f"{name}={given!r}: expected a list of names")
        missing = [site for site in given if site not in found]
        if missing:
            raise ValueError(f"{name}: no such sites {missing}; the model has {list(found)}")
    if not observed:
        raise ValueError("observed is empty, expected the names of the sites that are the data")
    fixed = [k for k, site in found.items() if site["is_observed"] and is_term(site)]
    if fixed:
        raise ValueError(
            f"model observes {fixed}, expected one that draws its data; leave out obs= and factors"
        )
    continuous = _continuous(found, observed)
    if label is not None and (label in observed or not _is_discrete(found[label])):
        raise ValueError(f"label={label!r}: expected a hidden discrete site")
    if label is not None and not plates_of(found[label]):
        raise ValueError(f"label={label!r}: expected it in a (vectorised) plate of data")
    chosen = continuous if sites is None else list(sites)
    wrong = [name for name in chosen if name not in continuous]
    if wrong:
        raise ValueError(f"sites: {wrong} are discrete or observed; expected some of {continuous}")
    if not chosen:
        what = "sites is empty" if continuous else "sites: the model has no continuous latent to rank"
        raise ValueError(f"{what}; expected some of {continuous or list(found)}")
    return chosen


def _continuous(found: Mapping[str, Site], observed: Sequence[str]) -> list[str]:
    """The names of all continuous latents."""
    hidden = [name for name, site in found.items() if name not in observed and is_term(site)]
    return [name for name in hidden if not _is_discrete(found[name])]


def _is_discrete(site: Site) -> bool:
    return bool(site["fn"].support.is_discrete)


def _check_draws(draws: Values, found: Mapping[str, Site], needed: Sequence[str], where: str) -> None:
    missing = [name for name in needed if name not in draws]
    if missing:
        raise ValueError(f"{where}: infer returned draws of {sorted(draws)}, and none of {missing}")
    for name, values in draws.items():
        shape, true = tuple(values.shape[1:]), tuple(found[name]["value"].shape)
        if [size for size in shape if size > 1] != [size for size in true if size > 1]:
            raise ValueError(
                f"{where}: infer returned draws of {name!r} of shape {tuple(values.shape)}, expected (S, "
                f"*{true})"
            )
        if len(values) < 2 or not values.is_floating_point():
            raise ValueError(
                f"{where}: infer returned {len(values)} draws of {name!r} in {values.dtype}, expected two or "
                "more, in floating point"
            )


def _check_same(shape: tuple[int, tuple[str, ...]], results: Sequence[SBCResult], where: str) -> None:
    if results and shape != (results[0].num_draws, results[0].names):
        raise ValueError(
            f"{where}: {shape[0]} draws of {list(shape[1])}, but {results[0].num_draws} of "
            f"{list(results[0].names)} before; expected the same in each simulation"
        )


def _thinned(
    draws: Values, latents: Sequence[str], count: int, chains: torch.Size
) -> tuple[dict[str, Tensor], Tensor]:
    """``count`` draws, evenly spread, and the smallest ESS before."""
    import arviz

    total = len(next(iter(draws.values())))
    if count > total:
        raise ValueError(f"thin={count}: infer returned {total} draws, expected at least as many")
    columns = torch.cat([draws[name].reshape(total, -1) for name in latents], 1).double().numpy()
    least = min(float(arviz.ess(column.reshape(chains))) for column in columns.T)
    kept = torch.arange(count) * total // count
    return {name: values[kept] for name, values in draws.items()}, torch.tensor([least])


def _components(
    found: Mapping[str, Site],
    latents: Sequence[str],
    draws: Values,
    quantities: Mapping[str, Quantity],
    data: Values,
    where: str,
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names of the C scalars, their true values ``(C,)`` and their draws ``(S, C)``."""
    truth = {name: found[name]["value"].detach().cpu() for name in draws}
    count = len(next(iter(draws.values())))
    draws = {name: values.reshape(count, *truth[name].shape) for name, values in draws.items()}
    names = [
        name + (f"[{', '.join(map(str, index))}]" if index else "")
        for name in latents
        for index in np.ndindex(*truth[name].shape)
    ]
    true = [truth[name].reshape(-1).double() for name in latents]
    drawn = [draws[name].reshape(count, -1).double() for name in latents]
    for name, quantity in quantities.items():
        if name in names:
            raise ValueError(f"quantities: {name!r} is the name of a latent; give it another one")
        names.append(name)
        true.append(_scalar(quantity(truth, data))[None])
        each = [{site: values[s] for site, values in draws.items()} for s in range(count)]
        drawn.append(torch.stack([_scalar(quantity(values, data)) for values in each])[:, None])
    all_true, all_drawn = torch.cat(true), torch.cat(drawn, 1)
    bad = (all_true.isnan() | all_drawn.isnan().any(0)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{where}: NaN in {[names[i] for i in bad]}, expected numbers")
    return tuple(names), all_true, all_drawn


def _ranks(true: Tensor, drawn: Tensor) -> Tensor:
    """How many draws ``(S, C)`` are below the truth ``(C,)``. Ties are broken at random."""
    ties = (drawn == true).sum(0)
    return (drawn < true).sum(0) + (torch.rand(len(ties)) * (ties + 1)).long().minimum(ties)


def _scalar(value: Tensor | float) -> Tensor:
    number = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if number.numel() != 1:
        raise ValueError(f"quantities: a function returned shape {tuple(number.shape)}, expected one number")
    return number.reshape(())
