"""Posterior, label probabilities and pointwise likelihood for ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scnf.posterior.draws import DRAWS, count_draws, find_label, over_plates, trace_draws
from pyro_scnf.posterior.labels import enumerate_labels, sample_labels
from pyro_scnf.posterior.named_arrays import SAMPLE, Groups, make_datasets, name_dims
from pyro_scnf.sharing import share_encoding

__all__ = ["to_inference_data"]


@torch.no_grad()
def to_inference_data(
    model: Callable[..., Any],
    args: Sequence[Any],
    posterior: Any,
    *,
    site: str | Sequence[str] = "y",
    num_chains: int | None = None,
    group_by_chain: bool = False,
    max_plate_nesting: int = 1,
    parallel: bool = True,
    chunk_size: int | None = None,
    observed: bool | Collection[str] = True,
    constant_data: Mapping[str, Any] | None = None,
    sample_stats: Mapping[str, Any] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | torch.Generator | None = None,
) -> Any:
    r"""Everything ArviZ needs to compare, check and plot a model with labels, in one object.

    ``arviz.from_pyro`` draws an enumerated label once from its prior and records
    :math:`\log p(x_n \mid y_{random}, \theta_s)`. Here the label is summed out,

    .. math:: \log p(x_n \mid \theta_s) = \log \sum_k p(x_n, y_n = k \mid \theta_s),

    so that ``arviz.loo`` and ``arviz.compare`` mean what they say. Groups and variables, S draws in
    chains, N data, K labels:

    =================== ============= ================================================================
    ``posterior``       the latents   ``(chain, draw, ...)``
    ..                  ``y``         label draws, ``(chain, draw, datum)``
    ..                  ``y_prob``    :math:`p(y_n = k \mid x_n, \theta_s)`, ``(chain, draw, datum, class)``
    ``log_likelihood``  ``x``         nats, ``(chain, draw, datum)``; :math:`\log p(x_n, y_n \mid \theta_s)`
                                      of rows whose label is observed
    ``observed_data``   ``x``         ``(datum, ...)``; also ``y``, if observed
    ``constant_data``   yours
    ``sample_stats``    yours         ``(chain, draw, ...)``; ``diverging`` of an ``MCMC`` object
    =================== ============= ================================================================

    Variables are called by their sites: ``y`` here is ``site``, and ``x`` what is observed in its
    plates (joined by ``_`` in ``log_likelihood``, if several). An observed label has no draws or
    probabilities. Plates inside the label's, and those of latents, give their names to dimensions.

    :param model: any Pyro model that :func:`enumerate_labels` takes.
    :param args: its positional arguments, the observed data among them.
    :param posterior: draws of its latents by site name, ``(S, ...)``, or an ``MCMC`` object after its
        run.
    :param site: the label; the observed x if the model has none, as with :class:`LabelMarginal`.
        Several labels (``["y", "y_unlabelled"]``) give one variable each, and the dimension
        ``datum`` is then called by their plates.
    :param int num_chains: divide the S draws into so many chains, one after the other; one by default.
    :param bool group_by_chain: draws have shape ``(chains, draws, ...)``, as
        ``MCMC.get_samples(group_by_chain=True)`` gives them.
    :param int max_plate_nesting: depth of plates in the model.
    :param bool parallel: whether the model may run for many draws at once, see
        :func:`enumerate_labels`.
    :param int chunk_size: number of draws for which it does, all by default. Memory of a run grows
        with it times N·K; the flow runs once on x for all chunks together.
    :param observed: names of the observed sites to include, or all or none: images may be large.
    :param constant_data: more data by name, such as true labels for evaluation; rows of what has a
        first dimension of size N are data.
    :param sample_stats: statistics of the sampler by name, in the shape of the draws.
    :param coords: values along dimensions, such as ``{"class": names}``; counted from 0 by default.
    :param dims: names of dimensions by variable; those after chain, draw and datum suffice. ArviZ's
        ``name_dim_0`` and so on by default.
    :param seed: of the label draws, or a CPU generator; the global one by default.
    :return: an ``arviz.InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` under 1.x; read both by
        ``data["posterior"]["y_prob"]``.
    :raises ImportError: without ArviZ.
    :raises ValueError: for fewer than two draws, draws that differ in number or do not divide into
        the chains, unknown names of sites, variables or dimensions, and what
        :func:`enumerate_labels` raises.

    The flow runs once on x; beyond that, memory is that of the S·N·K numbers ``y_prob``. Log-likelihoods
    are summed over labels in float64, but as exact as the model's dtype made their terms: about 0.0005
    nats in float32 at 5000 nats a datum.
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

    with share_encoding():
        # One draw, as the model is written, tells what sites there are.
        trace = trace_draws(model, args, {k: v[:1] for k, v in draws.items()}, max_plate_nesting, False)
        sites = [site] if isinstance(site, str) else site
        labels = {name: find_label(trace, name, draws) for name in sites}
        options: dict[str, Any] = {"max_plate_nesting": max_plate_nesting, "parallel": parallel}
        joints = {
            name: torch.cat([enumerate_labels(model, args, c, site=name, **options).cpu() for c in chunks])
            for name in labels
        }

    names = _Names(labels, dims or {})
    groups: Groups = {g: {} for g in ("posterior", "sample_stats", "log_likelihood", "observed_data")}
    for name, values in draws.items():
        inner = names.latent_plates(trace.nodes[name], values)
        groups["posterior"][name] = names(name, values.unflatten(0, shape), SAMPLE, inner)
    for name, values in stats.items():
        groups["sample_stats"][name] = names(name, values.unflatten(0, shape), SAMPLE)
    data: dict[str, Any] = {}
    for name, joint in joints.items():
        label, log_joint, lead = labels[name], joint.double(), SAMPLE + names.plates(labels[name])
        found = _data_sites(trace, name, label, draws)
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
        node = data[name]
        values = over_plates(node["value"], node, max_plate_nesting, node["fn"].event_dim)[0]
        groups["observed_data"][name] = names(name, values, names.plates(node))
    groups["constant_data"] = {
        name: names(name, values, names.rows(values))
        for name, values in ((k, torch.as_tensor(v)) for k, v in (constant_data or {}).items())
    }
    names.check(groups)
    datasets = make_datasets(groups, coords or {}, dict(names.classes.values()))
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _read_draws(
    draws: Any,
    num_chains: int | None,
    group_by_chain: bool,
    expected: torch.Size | None = None,
    owner: str = "posterior",
) -> tuple[dict[str, Tensor], torch.Size]:
    """Draws ``(S, ...)``, chain after chain, and the numbers of chains and of draws in each."""
    if hasattr(draws, "get_samples"):  # MCMC
        draws, group_by_chain, num_chains = draws.get_samples(group_by_chain=True), True, None
    if not draws:
        raise ValueError(
            f"{owner}: no draws. With point estimates alone there is nothing for ArviZ to compare; class "
            "probabilities are enumerate_labels(model, args).softmax(-1)"
        )
    draws = {name: torch.as_tensor(values) for name, values in draws.items()}
    if group_by_chain:
        shapes = {name: tuple(values.shape[:2]) for name, values in draws.items()}
        first = next(iter(shapes.values()))
        if len(first) < 2 or len(set(shapes.values())) > 1 or num_chains not in (None, first[0]):
            chains = "chains" if num_chains is None else num_chains
            raise ValueError(f"{owner}: expected shapes ({chains}, draws, ...), got {shapes}")
        draws = {name: values.flatten(0, 1) for name, values in draws.items()}
        num_chains = first[0]
    count, chains = count_draws(draws), 1 if num_chains is None else num_chains
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
    return draws, shape


def _diverging(posterior: Any, shape: torch.Size) -> dict[str, Tensor]:
    """Which draws of an ``MCMC`` object ended a divergent trajectory, if its kernel tells."""
    if not hasattr(posterior, "diagnostics"):
        return {}
    divergences = posterior.diagnostics().get("divergences")
    if divergences is None:
        return {}
    diverging = torch.zeros(shape, dtype=torch.bool)
    for chain in range(shape[0]):
        diverging[chain, divergences[f"chain {chain}"]] = True
    return {"diverging": diverging.flatten()}


def _data_sites(trace: Any, site: str, label: Any, drawn: Collection[str]) -> dict[str, Any]:
    """What is observed in the label's plates, factors left out: the label itself and x."""
    plates = set(_plates(label))
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and node["is_observed"]
        and plates <= set(_plates(node))
        and name != f"{site}_observed"  # Pyro's part of an obs_mask
        and not isinstance(node["fn"], dist.Unit)
        and not node["infer"].get("_deterministic")
        and name not in drawn
    }


def _select(data: Mapping[str, Any], observed: bool | Collection[str]) -> list[str]:
    if isinstance(observed, bool):
        return list(data) if observed else []
    names = [observed] if isinstance(observed, str) else list(observed)
    unknown = sorted(set(names) - data.keys())
    if unknown:
        raise ValueError(f"observed: no such sites {unknown}; observed with the labels are {list(data)}")
    return names


def _plates(node: Any) -> list[str]:
    """Names of a site's plates as its dimensions have them, the draws left out."""
    frames = sorted(node["cond_indep_stack"], key=lambda frame: frame.dim)
    return [frame.name for frame in frames if frame.name != DRAWS]


class _Names:
    """Names of dimensions: ``datum``, ``class``, those of plates, and the user's."""

    def __init__(self, labels: Mapping[str, Any], dims: Mapping[str, Sequence[str]]) -> None:
        self.dims = dims
        plates = {plate for label in labels.values() for plate in _plates(label)}
        self.datum = {plate: "datum" if len(plates) == 1 else plate for plate in plates}
        self.sizes = {
            self.datum[frame.name]: frame.size
            for label in labels.values()
            for frame in label["cond_indep_stack"]
            if frame.name != DRAWS
        }
        self.leads = list({tuple(self.plates(label)): None for label in labels.values()})
        hidden = [name for name, label in labels.items() if "_enumerate_dim" in label["infer"]]
        self.classes: dict[str, tuple[str, Any]] = {
            name: ("class" if len(hidden) == 1 else f"{name}_class", _support(labels[name]))
            for name in hidden
        }

    def __call__(self, name: str, values: Tensor, lead: Sequence[str], inner: Sequence[str] = ()) -> Any:
        return name_dims(name, values, lead, inner, self.dims)

    def plates(self, node: Any) -> list[str]:
        """Dimensions of a site in its plates."""
        return [self.datum.get(plate, plate) for plate in _plates(node)]

    def latent_plates(self, node: Any, draws: Tensor) -> list[str]:
        """Likewise for draws ``(S, *plates, *event)``, which autoguides give plates they are not in."""
        plates = self.plates(node)
        return plates if draws.dim() - 1 - node["fn"].event_dim == len(plates) else []

    def rows(self, values: Tensor) -> list[str]:
        """The plates whose sizes an array begins with, if that is one label's alone."""
        leads = [d for d in self.leads if values.shape[: len(d)] == tuple(self.sizes[k] for k in d)]
        return list(leads[0]) if len(leads) == 1 else []

    def check(self, groups: Groups) -> None:
        """Raise for dimensions given of variables that do not exist."""
        variables = {name for group in groups.values() for name in group}
        unknown = sorted(self.dims.keys() - variables)
        if unknown:
            raise ValueError(f"dims: no such variables {unknown}; there are {sorted(variables)}")


def _support(label: Any) -> Tensor:
    """The values of an enumerated label, ``(K,)``; counted where one value is not a scalar."""
    value, dim = label["value"], label["infer"]["_enumerate_dim"] - label["fn"].event_dim
    count = value.shape[dim]
    return value.flatten().cpu() if value.numel() == count else torch.arange(count)
