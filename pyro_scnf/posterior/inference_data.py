"""Posterior draws, label probabilities and pointwise log-likelihoods for ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_scnf.posterior.draws import (
    DRAWS,
    Plate,
    Site,
    count_draws,
    find_label,
    over_plates,
    plates_of,
    sample_sites,
    trace_draws,
)
from pyro_scnf.posterior.labels import enumerate_labels, sample_labels
from pyro_scnf.posterior.named_arrays import SAMPLE, Groups, Variable, make_datasets, name_dims
from pyro_scnf.sharing import evaluation

if TYPE_CHECKING:
    import arviz
    import xarray
    from numpy.typing import ArrayLike

__all__ = ["to_inference_data"]


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
    parallel: bool = True,
    chunk_size: int | None = None,
    observed: bool | Collection[str] = True,
    constant_data: Mapping[str, ArrayLike] | None = None,
    sample_stats: Mapping[str, ArrayLike] | None = None,
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

    =================== ============= ================================================================
    ``posterior``       the latents   ``(chain, draw, ...)``
    ..                  ``y``         draws of the label, ``(chain, draw, datum)``
    ..                  ``y_prob``    :math:`p(y_n = k \mid x_n, \theta_s)`, ``(chain, draw, datum, class)``
    ``log_likelihood``  ``x``         nats, ``(chain, draw, datum)``. For a row whose label is observed it
                                      is :math:`\log p(x_n, y_n \mid \theta_s)`
    ``observed_data``   ``x``         ``(datum, ...)``; also ``y``, if observed
    ``constant_data``   your arrays
    ``sample_stats``    your arrays   ``(chain, draw, ...)``; also ``diverging`` of an ``MCMC`` object
    =================== ============= ================================================================

    Variables have the names of their sites. In the table, ``y`` stands for ``site`` and ``x`` for the site
    observed in its plates. If several are observed, their names are joined by ``_`` in ``log_likelihood``.
    An observed label has no draws or probabilities. The plates of latents, and plates inside the label's,
    give dimensions their names.

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
    :param bool parallel: whether the model may run for many draws at once, see :func:`enumerate_labels`.
    :param int chunk_size: number of draws in one such run, all by default. The memory of a run grows with
        this number times N·K. The flow runs once on x for all runs together.
    :param observed: names of the observed sites to include, ``True`` for all, or ``False`` for none, for
        example because images are large.
    :param constant_data: further data by name, such as true labels for evaluation. An array whose first
        dimension has size N is taken as one row per datum.
    :param sample_stats: statistics of the sampler by name, in the shape of the draws.
    :param coords: values along dimensions, such as ``{"class": names}``. Dimensions without values count
        from 0.
    :param dims: names of dimensions by variable, with or without the first ones, chain, draw and datum. The
        default is ArviZ's: ``name_dim_0`` and so on.
    :param seed: seed of the label draws, or a CPU generator. By default the global generator is used.
    :return: an ``arviz.InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` under 1.x. Both are read as
        ``data["posterior"]["y_prob"]``.
    :raises ImportError: without ArviZ.
    :raises ValueError: for fewer than two draws; for draws that differ in number or do not divide into the
        chains; for unknown names of sites, variables or dimensions; and wherever :func:`enumerate_labels`
        raises it.

    The flow runs once on x. Apart from that, memory is that of the S·N·K numbers ``y_prob``. Log-likelihoods
    are summed over labels in float64, but their terms have the precision of the model's dtype: in float32, at
    5000 nats a datum, the error is about 0.0005 nats.
    """
    import arviz

    draws, shape = _read_draws(posterior, num_chains, group_by_chain)
    stats = _diverging(posterior, shape)
    if sample_stats:
        stats |= _read_draws(sample_stats, shape[0], group_by_chain, shape, "sample_stats")[0]
    size = shape.numel() if chunk_size is None else chunk_size
    if size < 1:
        raise ValueError(f"chunk_size={chunk_size}: expected a positive number of draws")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    chunks = [{k: v[i : i + size] for k, v in draws.items()} for i in range(0, shape.numel(), size)]

    with evaluation():
        # Run the model on one draw, with the shapes that it has in training, to learn its sites.
        first = {name: values[:1] for name, values in draws.items()}
        sites = sample_sites(trace_draws(model, args, first, max_plate_nesting, parallel=False))
        label_names = [site] if isinstance(site, str) else site
        labels = {name: find_label(sites, name, draws) for name in label_names}

        def enumerate_chunk(name: str, chunk: Mapping[str, Tensor]) -> Tensor:
            return enumerate_labels(
                model, args, chunk, site=name, max_plate_nesting=max_plate_nesting, parallel=parallel
            ).cpu()

        joints = {name: torch.cat([enumerate_chunk(name, chunk) for chunk in chunks]) for name in labels}

    names = _Names(labels, dims or {})
    groups: Groups = {g: {} for g in ("posterior", "sample_stats", "log_likelihood", "observed_data")}
    for name, values in draws.items():
        inner = names.latent_plates(sites[name], values)
        groups["posterior"][name] = names(name, values.unflatten(0, shape), SAMPLE, inner)
    for name, values in stats.items():
        groups["sample_stats"][name] = names(name, values.unflatten(0, shape), SAMPLE)
    data: dict[str, Site] = {}
    for name, joint in joints.items():
        label, log_joint, lead = labels[name], joint.double(), SAMPLE + names.plates(labels[name])
        found = _data_sites(sites, name, label, draws)
        data |= found
        variable = "_".join(k for k in found if k != name) or name
        likelihood = log_joint.logsumexp(-1).unflatten(0, shape)
        groups["log_likelihood"][variable] = name_dims(variable, likelihood, lead)
        if name in names.classes:
            y = names.classes[name][1][sample_labels(log_joint, generator=generator)].unflatten(0, shape)
            probs = log_joint.softmax(-1).to(joint.dtype).unflatten(0, shape)
            groups["posterior"][name] = names(name, y, lead)
            groups["posterior"][f"{name}_prob"] = names(f"{name}_prob", probs, lead, [names.classes[name][0]])
    for name in _select(data, observed):
        seen = data[name]
        values = over_plates(seen["value"], seen, max_plate_nesting, seen["fn"].event_dim)[0]
        groups["observed_data"][name] = names(name, values, names.plates(seen))
    groups["constant_data"] = {
        name: names(name, values, names.rows(values))
        for name, values in ((k, torch.as_tensor(v)) for k, v in (constant_data or {}).items())
    }
    names.check(groups)
    datasets = make_datasets(groups, coords or {}, dict(names.classes.values()))
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=None, warn_on_custom_groups=False, **datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _read_draws(
    draws: Mapping[str, ArrayLike] | MCMC,
    num_chains: int | None,
    group_by_chain: bool,
    expected: torch.Size | None = None,
    owner: str = "posterior",
) -> tuple[dict[str, Tensor], torch.Size]:
    """Draws ``(S, ...)``, chain after chain, and the numbers of chains and of draws in each chain."""
    samples: Mapping[str, ArrayLike]
    if isinstance(draws, MCMC):
        samples, group_by_chain, num_chains = draws.get_samples(group_by_chain=True), True, None
    else:
        samples = draws
    if not samples:
        raise ValueError(
            f"{owner}: no draws. With point estimates alone there is nothing for ArviZ to compare; class "
            "probabilities are enumerate_labels(model, args).softmax(-1)"
        )
    tensors = {name: torch.as_tensor(values) for name, values in samples.items()}
    if group_by_chain:
        shapes = {name: tuple(values.shape[:2]) for name, values in tensors.items()}
        first = next(iter(shapes.values()))
        if len(first) < 2 or len(set(shapes.values())) > 1 or num_chains not in (None, first[0]):
            chains = "chains" if num_chains is None else num_chains
            raise ValueError(f"{owner}: expected shapes ({chains}, draws, ...), got {shapes}")
        tensors = {name: values.flatten(0, 1) for name, values in tensors.items()}
        num_chains = first[0]
    count, chains = count_draws(tensors), 1 if num_chains is None else num_chains
    if chains < 1 or count % chains:
        raise ValueError(f"num_chains={num_chains}: {count} draws do not divide into so many chains")
    shape = torch.Size((chains, count // chains))
    if expected not in (None, shape):
        raise ValueError(f"{owner}: {tuple(shape)} chains and draws, but {tuple(expected)} in posterior")
    if expected is None and count < 2:
        raise ValueError(
            f"{owner}: one draw is a point estimate, for which loo and compare are meaningless; class "
            "probabilities are enumerate_labels(model, args, posterior).softmax(-1)"
        )
    return tensors, shape


def _diverging(posterior: Mapping[str, ArrayLike] | MCMC, shape: torch.Size) -> dict[str, Tensor]:
    """Which draws of an ``MCMC`` object ended a divergent trajectory, if its kernel records it."""
    if not isinstance(posterior, MCMC):
        return {}
    divergences = posterior.diagnostics().get("divergences")
    if divergences is None:
        return {}
    diverging = torch.zeros(shape, dtype=torch.bool)
    for chain in range(shape[0]):
        diverging[chain, divergences[f"chain {chain}"]] = True
    return {"diverging": diverging.flatten()}


def _data_sites(
    sites: Mapping[str, Site], label_name: str, label: Site, drawn: Collection[str]
) -> dict[str, Site]:
    """The sites observed in the label's plates, apart from factors: x, and the label if it is observed."""
    plates = {plate.name for plate in _data_plates(label)}
    return {
        name: site
        for name, site in sites.items()
        if site["is_observed"]
        and plates <= {plate.name for plate in _data_plates(site)}
        and name != f"{label_name}_observed"  # one of the two parts into which obs_mask splits a label
        and not isinstance(site["fn"], dist.Unit)
        and not site["infer"].get("_deterministic")
        and name not in drawn
    }


def _select(data: Mapping[str, Site], observed: bool | Collection[str]) -> list[str]:
    if isinstance(observed, bool):
        return list(data) if observed else []
    names = [observed] if isinstance(observed, str) else list(observed)
    unknown = sorted(set(names) - data.keys())
    if unknown:
        raise ValueError(f"observed: no such sites {unknown}; observed with the labels are {list(data)}")
    return names


def _data_plates(site: Site) -> list[Plate]:
    """The vectorised plates around a site, from left to right, without that of the draws."""
    return [plate for plate in plates_of(site) if plate.name != DRAWS]


class _Names:
    """Names of dimensions: ``datum``, ``class``, those of plates, and the user's."""

    def __init__(self, labels: Mapping[str, Site], dims: Mapping[str, Sequence[str]]) -> None:
        self.dims = dims
        sizes = {plate.name: plate.size for label in labels.values() for plate in _data_plates(label)}
        self.datum = {plate: "datum" if len(sizes) == 1 else plate for plate in sizes}
        self.sizes = {self.datum[plate]: size for plate, size in sizes.items()}
        self.leads = list({tuple(self.plates(label)): None for label in labels.values()})
        hidden = [name for name, label in labels.items() if "_enumerate_dim" in label["infer"]]
        self.classes: dict[str, tuple[str, Tensor]] = {
            name: ("class" if len(hidden) == 1 else f"{name}_class", _support(labels[name]))
            for name in hidden
        }

    def __call__(self, name: str, values: Tensor, lead: Sequence[str], inner: Sequence[str] = ()) -> Variable:
        return name_dims(name, values, lead, inner, self.dims)

    def plates(self, site: Site) -> list[str]:
        """Names of the dimensions of a site's plates."""
        return [self.datum.get(plate.name, plate.name) for plate in _data_plates(site)]

    def latent_plates(self, site: Site, draws: Tensor) -> list[str]:
        """Likewise for draws ``(S, *plates, *event)`` of a latent.

        An autoguide may give them dimensions of plates around other sites. There are then no names.
        """
        plates = self.plates(site)
        return plates if draws.dim() - 1 - site["fn"].event_dim == len(plates) else []

    def rows(self, values: Tensor) -> list[str]:
        """Names of a label's plates, if an array begins with their sizes and no other label's fit too."""
        leads = [d for d in self.leads if values.shape[: len(d)] == tuple(self.sizes[k] for k in d)]
        return list(leads[0]) if len(leads) == 1 else []

    def check(self, groups: Groups) -> None:
        """Raise if the user named dimensions of variables that do not exist."""
        variables = {name for group in groups.values() for name in group}
        unknown = sorted(self.dims.keys() - variables)
        if unknown:
            raise ValueError(f"dims: no such variables {unknown}; there are {sorted(variables)}")


def _support(label: Site) -> Tensor:
    """The values of an enumerated label, ``(K,)``: 0 to K - 1 if a value is not a scalar."""
    value, dim = label["value"], label["infer"]["_enumerate_dim"] - label["fn"].event_dim
    count = value.shape[dim]
    return value.flatten().cpu() if value.numel() == count else torch.arange(count)
