"""The training loss of a model, a guide and training terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine.trace_struct import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_at_least, check_flag
from pyro_scnf._shapes import no_autocast
from pyro_scnf.models import EMGuide, SemiSupervisedModel, exact_guide
from pyro_scnf.models.em import Expected, expected_labels, learns_by_em
from pyro_scnf.models.guard import guarded
from pyro_scnf.models.parameters import SiteParameters
from pyro_scnf.models.plates import training_term
from pyro_scnf.models.scoring import Arguments, ForTerms, check_used, score_step
from pyro_scnf.models.traces import check_sites, plate_depth, trace_depth
from pyro_scnf.sharing import carried, evaluation
from pyro_scnf.terms import Terms, TrainingTerm, make_terms, weighted

__all__ = ["Objective", "elbo", "with_terms"]


def _leave_autocast() -> ExitStack:
    """A context without autocast, on every kind of device where it is on."""
    off = ExitStack()
    for device_type in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device_type):
            off.enter_context(no_autocast(device_type))
    return off


class Objective(PortableModule):
    """The loss that :func:`elbo` returns: Pyro's ``TraceEnum_ELBO`` plus training terms.

    Its parameters are those of model and guide. If one of these is a function, or a guide that makes its
    parameters when it runs, they are known after the first call. Reading them before raises ``RuntimeError``.

    :ivar dict terms: the training terms by name.
    :ivar dict parts: what the latest call added up, without gradient: ``nll``, the negative ELBO, and each
        term by name with its weight.
    :ivar expected: the E-step of the latest call, for :func:`~pyro_scnf.models.update_after_step`; ``None``
        if EM trains nothing of the model.
    """

    def __init__(
        self,
        model: Callable[..., object],
        guide: Callable[..., object],
        terms: Terms,
        max_plate_nesting: int | None,
        num_particles: int,
        vectorize_particles: bool,
    ) -> None:
        super().__init__()
        check_at_least(1, num_particles=num_particles)
        check_flag(vectorize_particles=vectorize_particles)
        _check_programs(model, guide)
        made = make_terms(terms)  # once, since an iterator ends
        if isinstance(model, WithTerms) and not made:
            made, model = model.terms, model.model  # the same loss, with its parts by name
        if max_plate_nesting is not None:
            check_at_least(0, max_plate_nesting=max_plate_nesting)
        elif isinstance(model, SemiSupervisedModel):
            max_plate_nesting = 1
        self.max_plate_nesting = max_plate_nesting
        self.named_by_sites = SiteParameters(model, guide)
        self.model, self.guide, self.terms = model, guide, made
        self.passed = _taken(model)
        self.elbo = TraceEnum_ELBO(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=False,
        )
        self.parts: dict[str, Tensor] = {}
        self.expected: Expected | None = None
        if self.terms:
            _checked(model)

    def forward(
        self,
        *args: Tensor,
        pairs: Tensor | None = None,
        view: Tensor | None = None,
        progress: float | None = None,
        **kwargs: Tensor,
    ) -> Tensor:
        """The loss of a batch, a scalar in nats.

        The keyword arguments that are listed here are for training terms. A model of your own has no such
        terms, so it gets them with all others.

        :param args: arguments of the model. Other keyword arguments go to the model too.
        :param pairs: pairs of rows that probably share their label, ``(P, 2)``, numbered from 0 through both
            batches, the labelled one first.
        :param view: the unlabelled rows, perturbed once more.
        :param float progress: share of training that is done, 0 to 1, by default 0. The weights of terms
            depend on it.
        :raises ValueError: if a term needs something that the call lacks, or no term uses ``pairs`` or
            ``view``, or if the plates are nested deeper than ``max_plate_nesting``.
        :raises RuntimeError: if the loss would be wrong: a latent is neither enumerated nor in the guide, the
            guide samples a site that the model observes or lacks, or scale, mask or plates of a latent differ
            between model and guide; or if a parameter is new, after the parameters were read.
        """
        extra, step = ForTerms(pairs, view, progress or 0.0), None
        given = {"pairs": pairs, "view": view, "progress": progress}
        more = {name: given[name] for name in self.passed if given[name] is not None}
        check_used(self.terms, ForTerms(None if "pairs" in more else pairs, None if "view" in more else view))
        passed = {**kwargs, **more}
        self.named_by_sites.before_run()
        # A model or guide of a user's own may write to parameters in a way that PyTorch does not count.
        own = type(self.model) is SemiSupervisedModel and (
            self.guide is exact_guide or type(self.guide) is EMGuide
        )
        with evaluation(watch=not own):
            if self.terms:  # before the model runs, so that it finds the class tables
                step = score_step(_checked(self.model), self.terms, Arguments.of(args, kwargs), extra)
            traces = self._traces(args, passed)
            # Here, so that it finds the encodings and class tables of the model.
            self.expected = expected_labels(self.model, *args, **kwargs) if learns_by_em(self.model) else None
        # Leave autocast before summing over labels. Under autocast, products run in bfloat16, whose eight
        # significant bits are too few for a log-likelihood.
        with _leave_autocast():
            value = sum(_compute_dice_elbo(model_trace, guide_trace) for model_trace, guide_trace in traces)
            value = value / self.elbo.num_particles
            nll = -torch.as_tensor(value)  # a model without any sample site gives the number 0
            terms = {} if step is None else weighted(self.terms, step)
            loss = sum(terms.values(), start=nll)
        self.parts = {name: part.detach() for name, part in {"nll": nll, **terms}.items()}
        warn_if_nan(loss, "loss")
        sites = (site for pair in traces for trace in pair for site in trace.nodes.values())
        self.named_by_sites.take_up(sites, loss)
        return loss

    def _traces(self, args: tuple[Tensor, ...], kwargs: Mapping[str, object]) -> list[tuple[Trace, Trace]]:
        """The traces of model and guide, one pair or several, whose terms Pyro sums."""
        model, told = guarded(self.model), self.max_plate_nesting
        try:
            if told is None:
                told = self.max_plate_nesting = plate_depth(model, self.guide, args, kwargs, scored=True)
            # With one dimension at least, Pyro notices rows that no plate declares.
            self.elbo.max_plate_nesting = max(1, told) + int(
                self.elbo.vectorize_particles and self.elbo.num_particles > 1
            )
            traces = list(self.elbo._get_traces(model, self.guide, args, kwargs))
        except Exception as error:
            if told is not None:
                _check_depth(told, _depth_of_run(model, self.guide, args, kwargs), error)
            explained = _about_the_argument(error)
            if explained is None:
                raise
            raise explained from error
        for model_trace, guide_trace in traces:
            _check_depth(told, max(map(trace_depth, (model_trace, guide_trace))))
            check_sites(model_trace, guide_trace)
        return traces

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters that are known so far."""
        if self.named_by_sites.complete:
            super().zero_grad(set_to_none)


def _check_programs(model: object, guide: object) -> None:
    """Raise unless model and guide can be called, and a guide of a model is that of this one."""
    if isinstance(guide, str):
        raise ValueError(f"guide={guide!r}: expected a guide; give pyro_scnf.make_guide({guide!r}, model)")
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise ValueError(
                f"{name} is a {type(program).__name__}, expected a Pyro {name}, a function or module"
            )
    if isinstance(guide, EMGuide):
        guide.check_model(model.model if isinstance(model, WithTerms) else model)


def _taken(model: Callable[..., object]) -> set[str]:
    """The arguments of training terms that go to the model. A model of a user's own may have them, too."""
    names = {"pairs", "view", "progress"}
    if isinstance(model, SemiSupervisedModel):
        return names & inspect.signature(model.forward).parameters.keys()
    return names


def _check_depth(told: int, depth: int, cause: Exception | None = None) -> None:
    """Raise if plates are nested deeper than the user has said, or the first call has found."""
    if depth > told:
        raise ValueError(
            f"max_plate_nesting={told}: the plates of the model are nested {depth} deep; give "
            f"elbo(..., max_plate_nesting={depth})"
        ) from cause


def _depth_of_run(
    model: Callable[..., object],
    guide: Callable[..., object],
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, object],
) -> int:
    """How deep plates are nested in a model that has failed; 0 if that cannot be found out."""
    try:
        with torch.no_grad():
            return plate_depth(model, guide, args, kwargs, scored=False)
    except Exception:
        return 0


def _about_the_argument(error: Exception) -> ValueError | None:
    """Pyro's error about the score of a site, with the error of the distribution first.

    That one names the user's argument. ``None`` for any other error.
    """
    cause, text = error.__cause__, str(error)
    if not (isinstance(cause, ValueError) and text.startswith("Error while computing")):
        return None
    site, _, rest = text.partition("\n")
    return ValueError(f"{cause}\n{site}\n{rest.removeprefix(str(cause)).lstrip()}")


def elbo(
    model: Callable[..., object],
    guide: Callable[..., object] = exact_guide,
    terms: Terms = (),
    *,
    max_plate_nesting: int | None = None,
    num_particles: int = 1,
    vectorize_particles: bool = False,
) -> Objective:
    r"""The negative ELBO as a module: ``loss = elbo(model)(x, y); loss.backward()``.

    With the empty guide it is the exact :math:`-\log p(x, y) - \log p(x')` of labelled and unlabelled rows,
    in nats, summed over the batch. It is the loss of Pyro's ``TraceEnum_ELBO``, with two differences: guide
    and model share one encoding of the data, and sums over labels are never in half precision.

    The loss of a model of your own is exact, too, or an error names the site for which it would not be. All
    discrete latents have to be enumerated or sampled in the guide, and all continuous ones sampled there.

    :param model: any Pyro model, a module or a function. Parameters of the returned module are all that a
        module holds, and all that a function names by ``pyro.param`` and ``pyro.module``. These are known
        after the first call: call ``loss(x)`` once before you make an optimiser of ``loss.parameters()``.
    :param guide: empty by default; an :class:`~pyro_scnf.EMGuide` or one of your own.
    :param terms: training terms to add, see :func:`~pyro_scnf.terms.make_terms`. They need a
        :class:`~pyro_scnf.SemiSupervisedModel`. They cost no pass of the flow, and share the class tables
        with model and guide.
    :param int max_plate_nesting: how deep the plates of the model are nested. If it is not given, the first
        call finds out, by one run more of model and guide.
    :param int num_particles: how many draws of the guide the loss averages.
    :param bool vectorize_particles: whether these draws are made at once, in a plate outside of all others.
    :return: a module, see :class:`Objective`. Called with the arguments of the model, it returns the loss, a
        scalar.
    :raises ValueError: if a term is unknown, if there are terms and ``model`` is no
        :class:`~pyro_scnf.SemiSupervisedModel`, for a number that is out of range, or a model or guide that
        cannot be called.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
    >>> model = pyro_scnf.SemiSupervisedModel(flow)
    >>> x = torch.randn(8, 2)
    >>> bool((elbo(model)(x) + flow.log_prob(x).sum()).abs() < 1e-3)
    True
    >>> loss = elbo(model, terms=["classification:weight=20,end=0.3", "balance"])
    >>> total = loss(x[:2], torch.tensor([0, 1]), x[2:], progress=0.5)
    >>> list(loss.parts)
    ['nll', 'classification', 'balance']
    """
    return Objective(model, guide, terms, max_plate_nesting, num_particles, vectorize_particles)


def with_terms(model: SemiSupervisedModel, terms: Terms) -> Callable[..., object]:
    """``model`` with training terms, for Pyro's own ``SVI``.

    :param model: the model to train.
    :param terms: see :func:`~pyro_scnf.terms.make_terms`.
    :return: a Pyro model that takes the arguments of ``model``, and ``pairs``, ``view`` and ``progress`` like
        :class:`Objective`. Each term is a factor of its name. The factors are marked as training terms, so
        :func:`~pyro_scnf.enumerate_labels` leaves them out.
    :raises ValueError: if a term is unknown, or ``model`` is no :class:`~pyro_scnf.SemiSupervisedModel`.

    >>> f_w = pyro_scnf.flows.glow((2,), steps=1)
    >>> flow = pyro_scnf.SemiConditionalFlow(f_w, "gmm", 3)
    >>> model = pyro_scnf.SemiSupervisedModel(flow)
    >>> trained = with_terms(model, "classification:weight=20")
    >>> elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    >>> adam = pyro.optim.Adam({"lr": 1e-3})
    >>> svi = pyro.infer.SVI(trained, pyro_scnf.exact_guide, adam, elbo)
    >>> x, y = torch.randn(8, 2), torch.tensor([0, 1])
    >>> loss = svi.step(x[:2], y, x[2:], progress=0.5)
    """
    return WithTerms(_checked(model), make_terms(terms))


class WithTerms(PortableModule):
    """A model with factors for training terms."""

    def __init__(self, model: SemiSupervisedModel, terms: dict[str, TrainingTerm]) -> None:
        super().__init__()
        self.model, self.terms = model, terms

    def forward(
        self,
        *args: Tensor,
        pairs: Tensor | None = None,
        view: Tensor | None = None,
        progress: float = 0.0,
        **kwargs: Tensor,
    ) -> object:
        extra = ForTerms(pairs, view, progress)
        check_used(self.terms, extra)
        batch = Arguments.of(args, kwargs)
        if not self.terms or batch.x is None:
            return self.model(*args, **kwargs)  # there is nothing to weigh, or it draws data
        with carried():
            step = score_step(self.model, self.terms, batch, extra)
            # Add the factors before labels are sampled. Pyro warns of a later factor that lies in no plate.
            for name, value in weighted(self.terms, step).items():
                training_term(name, -value)
            return self.model(*args, **kwargs)


def _checked(model: object) -> SemiSupervisedModel:
    """Raise unless training terms can see into ``model``."""
    if isinstance(model, WithTerms):
        raise ValueError("terms: the model has terms already; give all of them in one place")
    if not isinstance(model, SemiSupervisedModel):
        raise ValueError(
            f"terms: they need a SemiSupervisedModel, and the model is a {type(model).__name__}. In a larger "
            "Pyro model, call with_terms(model, terms) for the part that is one"
        )
    return model
