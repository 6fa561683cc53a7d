"""Posterior draws, label probabilities and pointwise log-likelihoods for ArviZ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from pyro.infer import MCMC

from pyro_scnf._numbers import check_at_least, check_flag
from pyro_scnf._param_store import param_store_kept
from pyro_scnf.posterior.chains import as_tensors, diverging, read_draws
from pyro_scnf.posterior.dimensions import Names
from pyro_scnf.posterior.draws import (
    Site,
    check_call,
    data_plates,
    find_label,
    sample_sites,
    trace_draws,
)
from pyro_scnf.posterior.labels import sample_labels
from pyro_scnf.posterior.named_arrays import SAMPLE, Groups, make_datasets, name_dims
from pyro_scnf.posterior.predictive import PredictiveReader
from pyro_scnf.posterior.rows import Observed
from pyro_scnf.posterior.runs import Runs
from pyro_scnf.posterior.tables import LabelTable
from pyro_scnf.sharing import evaluation

if TYPE_CHECKING:
    import arviz
    import xarray
    from numpy.typing import ArrayLike

__all__ = ["to_inference_data"]

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
)


@torch.no_grad()
def to_inference_data(
    model: Callable[..., object],
    args: Sequence[object],
    posterior: Mapping[str, ArrayLike] | MCMC,
    *,
    site: str | Sequence[str] = "y",
    num_chains: int | None = None,
    group_by_chain: bool = False,
    max_plate_nesting: int = 1,
    parallel: bool | None = None,
    chunk_size: int | None = None,
    observed: bool | Collection[str] = True,
    posterior_predictive: Mapping[str, ArrayLike] | None = None,
    prior: Mapping[str, ArrayLike] | None = None,
    constant_data: Mapping[str, ArrayLike] | None = None,
    sample_stats: Mapping[str, ArrayLike] | None = None,
    class_names: Sequence[str] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | torch.Generator | None = None,
) -> arviz.InferenceData | xarray.DataTree:
    r"""One object with all that ArviZ needs to compare, check and plot a model with labels.

    ``arviz.from_pyro`` draws an enumerated label once from its prior and records
    :math:`\log p(x_n \mid y_{random}, \theta_s)`. Here the label is summed out,

    .. math:: \log p(x_n \mid \theta_s) = \log \sum_k p(x_n, y_n = k \mid \theta_s),

    so that the results of ``arviz.loo`` and ``arviz.compare`` are right. The object has these groups and
    variables, for N data and K labels:

    ======================== ============= ===========================================================
    ``posterior``            the latents   ``(chain, draw, ...)``
    ..                       ``y``         draws of the label, ``(chain, draw, datum)``
    ..                       ``y_prob``    :math:`p(y_n = k \mid x_n, \theta_s)`,
                                           ``(chain, draw, datum, class)``
    ``posterior_predictive`` ``x``, ``y``  your draws, ``(chain, draw, datum, ...)``
    ``log_likelihood``       ``x``         nats, ``(chain, draw, datum)``. For a row whose label is observed
                                           it is :math:`\log p(x_n, y_n \mid \theta_s)`
    ``prior``                the latents   your draws, in one chain of their own
    ``prior_predictive``     ``x``, ``y``  likewise
    ``observed_data``        ``x``         ``(datum, ...)``; also ``y``, if observed
    ``constant_data``        your arrays
    ``sample_stats``         your arrays   ``(chain, draw, ...)``; also ``diverging`` of an ``MCMC`` object
    ======================== ============= ===========================================================

    Variables have the names of their sites. In the table, ``y`` stands for ``site`` and ``x`` for the site
    observed in its plates. If several are observed, their names are joined by ``_`` in ``log_likelihood``.
    An observed label has no draws or probabilities. The plates of latents, and plates inside the label's,
    give dimensions their names.

    Where a hidden site ties the rows of a label together, such as the regime of their group, no row has a
    likelihood of its own, and ``log_likelihood`` has none of this label. With ``site=["r", "y"]`` it has that
    of the groups. Draws of two labels are each from their own posterior, not from their joint one.

    Column n belongs to the same row in every draw and in every group. Rows of which nothing is observed,
    because of masks or weights of 0, are left out of all groups. The coordinate ``datum`` keeps the original
    numbers of the rows, also those of rows given to a plate (``subsample=rows``). In ``observed_data``, what
    a mask hides in a row that stays is NaN.

    :param model: any Pyro model that :func:`enumerate_labels` takes.
    :param args: positional arguments of the model, the observed data among them.
    :param posterior: draws of the model's latents by site name, ``(S, ...)``, or an ``MCMC`` object after
        its run.
    :param site: the label, or the observed x if the model has no label, as with :class:`LabelMarginal`.
        Several labels (``["y", "y_unlabelled"]``) make one variable each. If they lie in different plates,
        the names of the plates replace ``datum``.
    :param int num_chains: number of chains into which the S draws divide, one chain after the other; 1 by
        default.
    :param bool group_by_chain: whether draws have shape ``(chains, draws, ...)``, as
        ``MCMC.get_samples(group_by_chain=True)`` returns them.
    :param int max_plate_nesting: depth of plates in the model.
    :param parallel: whether the model runs for many draws at once, see :func:`enumerate_labels`.
    :param int chunk_size: number of draws in one such run, all by default. The memory of a run grows with
        this number times N·K. The flow runs once on x for all runs together.
    :param observed: names of the observed sites to include, ``True`` for all, or ``False`` for none, for
        example because images are large.
    :param posterior_predictive: draws of the data and the labels, one for each draw of ``posterior``, as
        Pyro's ``Predictive(model, draws)(...)`` returns them, ``(S, *plates, *event)``. The model has to draw
        the rows that ``args`` observe. Rows and cells that a mask leaves out are left out here too.
    :param prior: draws from the prior, as ``Predictive(model, num_samples=...)(...)`` returns them. Latents
        go into ``prior``, data and labels into ``prior_predictive``.
    :param constant_data: further data by name, such as true labels for evaluation. An array whose first
        dimension has the size of the plate is taken as one row per datum, rows that are left out included.
    :param sample_stats: statistics of the sampler by name, in the shape of the draws.
    :param class_names: a name for each class, such as ``data.class_names``. They become the values along the
        dimension ``class``, so that ``data["posterior"]["y_prob"].sel({"class": "cat"})`` works.
    :param coords: values along other dimensions; along ``datum``, one for each row of the plate. Dimensions
        without values count from 0.
    :param dims: names of dimensions by variable, with or without the first ones, chain, draw and datum. The
        default is ArviZ's: ``name_dim_0`` and so on.
    :param seed: seed of the label draws, or a generator. By default the global generator is used.
    :return: an ``arviz.InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` under 1.x. Both are read as
        ``data["posterior"]["y_prob"]``.
    :raises ImportError: without ArviZ.
    :raises ValueError: for fewer than two draws; for draws that differ in number or do not divide into the
        chains; for unknown names of sites, variables or dimensions; for masks that differ between draws or
        leave out single cells of two plates; for a site or plate that has the name of another variable or
        dimension of the export; for observed data that differ between draws or between runs of
        the model; for predictions of other rows, from other draws, or that are the observed data; for class
        names of another number than that of the classes; and wherever :func:`enumerate_labels` raises it.

    The flow runs once on x. Apart from that, memory is that of the S·N·K numbers ``y_prob``. Log-likelihoods
    are summed over labels in float64, but their terms have the precision of the model's dtype: in float32, at
    5000 nats a datum, the error is about 0.0005 nats.
    """
    import arviz

    check_call(args, max_plate_nesting, parallel)
    check_flag(group_by_chain=group_by_chain)
    if posterior is None or (isinstance(posterior, Mapping) and not posterior):
        raise ValueError(
            "posterior: no draws. With point estimates alone there is nothing for ArviZ to compare; class "
            "probabilities are enumerate_labels(model, args).softmax(-1)"
        )
    draws, shape = read_draws(posterior, num_chains, group_by_chain)
    if shape.numel() < 2:
        raise ValueError(
            "posterior: one draw is a point estimate, for which loo and compare are meaningless; class "
            "probabilities are enumerate_labels(model, args, posterior).softmax(-1)"
        )
    stats = diverging(posterior, shape)
    if sample_stats:
        stats |= read_draws(sample_stats, shape[0], group_by_chain, shape, "sample_stats")[0]
    size = shape.numel() if chunk_size is None else chunk_size
    check_at_least(1, chunk_size=size)
    generator = _generator(seed)
    runs = Runs(model, args, max_plate_nesting, parallel)
    chunks = [{k: v[i : i + size] for k, v in draws.items()} for i in range(0, shape.numel(), size)]

    with evaluation(), param_store_kept():
        # Run the model on one draw, with the shapes that it has in training, to learn its sites.
        first = {name: values[:1] for name, values in draws.items()}
        trace = trace_draws(model, args, first, max_plate_nesting, parallel=False)
        sites = sample_sites(trace)
        labels = {name: find_label(sites, name, draws) for name in _label_names(site)}
        seen = Observed.of(trace, sites, draws, max_plate_nesting)
        read = PredictiveReader(sites, draws, seen.values, max_plate_nesting)
        predicted = read("posterior_predictive", posterior_predictive, shape)
        before = read("prior", prior)
        names = Names(labels, dims or {}, seen.rows, max_plate_nesting)
        data_sites = {name: _data_sites(sites, name, label, draws) for name, label in labels.items()}
        others = {*labels, *predicted, *before, *itertools.chain(*data_sites.values())} - draws.keys()
        names.check_sites(draws, others, sites)
        tables = {
            name: _Tables(table for some in chunks for table in runs.tables(some, name)) for name in labels
        }
    for name, table in tables.items():
        seen.check_repeated(table.observed[0])
        names.rows.add(name, table.seen, names.plates(labels[name]))
    groups: Groups = {group: {} for group in GROUPS}
    for name, values in draws.items():
        groups["posterior"][name] = names.of_latent(name, sites[name], values, shape)
    for name, values in predicted.items():
        several = values.unflatten(0, shape)
        groups["posterior_predictive"][name] = names.of_data(name, sites[name], several, SAMPLE)
    for name, values in before.items():
        if name in draws:
            one_chain = torch.Size((1, len(values)))
            groups["prior"][name] = names.of_latent(name, sites[name], values, one_chain)
        else:
            groups["prior_predictive"][name] = names.of_data(name, sites[name], values[None], SAMPLE)
    for name, values in stats.items():
        groups["sample_stats"][name] = names(name, values.unflatten(0, shape), SAMPLE)
    data: dict[str, Site] = {}
    for name, table in tables.items():
        log_joint, lead = table.joint.double(), SAMPLE + names.plates(labels[name])
        found = data_sites[name]
        data |= found
        variable = "_".join(k for k in found if k != name) or name
        if not table.shared:
            likelihood = log_joint.logsumexp(-1).unflatten(0, shape)
            groups["log_likelihood"][variable] = names.rows.select(name_dims(variable, likelihood, lead))
        if name in names.classes:
            y = names.classes[name][1][sample_labels(log_joint, generator=generator)].unflatten(0, shape)
            probs = log_joint.softmax(-1).to(table.joint.dtype).unflatten(0, shape)
            groups["posterior"][name] = names(name, y, lead)
            groups["posterior"][f"{name}_prob"] = names(f"{name}_prob", probs, lead, [names.classes[name][0]])
    for name in _select(data, observed):
        for table in tables.values():
            table.check_shared(name)
        groups["observed_data"][name] = names.observed(name, data[name])
    groups["constant_data"] = {
        name: names(name, values, names.row_dims(values))
        for name, values in as_tensors(constant_data or {}, "constant_data").items()
    }
    names.check(groups)
    defaults = {**names.rows.defaults, **dict(names.classes.values())}
    given = dict(coords or {})
    for dim, words in names.class_coords(class_names).items():
        if dim in given:
            raise ValueError(f"coords: {dim!r} has names by class_names too; give one of them")
        given[dim] = words
    datasets = make_datasets(groups, names.rows.coords(given), defaults)
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=None, warn_on_custom_groups=False, **datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _label_names(site: str | Sequence[str]) -> list[str]:
    names = [site] if isinstance(site, str) else list(site) if isinstance(site, Sequence) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"site={site!r}: expected the name of a label, or a list of names")
    return names


def _generator(seed: int | torch.Generator | None) -> torch.Generator | None:
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    check_at_least(0, seed=seed)
    return torch.Generator().manual_seed(int(seed))


class _Tables:
    """The tables of a label from all chunks of draws, on the CPU."""

    def __init__(self, tables: Iterable[LabelTable]) -> None:
        joints, seen, self.observed, self.shared = [], [], list[Observed](), False
        for table in tables:
            self.shared = bool(table.shared)
            joints.append(table.joint.cpu())
            seen.append(table.seen.cpu())
            self.observed.append(table.observed)
        self.joint, self.seen = torch.cat(joints), torch.cat(seen)

    def check_shared(self, name: str) -> None:
        """Raise if the observed values of a site are not the same for all draws."""
        first = self.observed[0]
        if any(name in run.varying or first.differs(run, name) for run in self.observed):
            raise ValueError(
                f"site {name!r} observes values that depend on the draws, so there are no observed data for "
                "all of them; give observed=False, or the names of the other sites"
            )


def _data_sites(
    sites: Mapping[str, Site], label_name: str, label: Site, drawn: Collection[str]
) -> dict[str, Site]:
    """The sites observed in the label's plates, apart from factors: x, and the label if it is observed."""
    plates = {plate.name for plate in data_plates(label)}
    split = label["name"] == f"{label_name}_unobserved"  # by obs_mask, into this part and an observed one
    return {
        name: site
        for name, site in sites.items()
        if site["is_observed"]
        and plates <= {plate.name for plate in data_plates(site)}
        and not (split and name == f"{label_name}_observed")
        and not isinstance(site["fn"], dist.Unit)
        and not site["infer"].get("_deterministic")
        and name not in drawn
    }


def _select(data: Mapping[str, Site], observed: bool | Collection[str]) -> list[str]:
    if isinstance(observed, bool):
        return list(data) if observed else []
    if not isinstance(observed, Collection):
        raise ValueError(f"observed={observed!r}: expected True, False or names of sites")
    names = [observed] if isinstance(observed, str) else list(observed)
    unknown = sorted(set(names) - data.keys())
    if unknown:
        raise ValueError(f"observed: no such sites {unknown}; observed with the labels are {list(data)}")
    return names
