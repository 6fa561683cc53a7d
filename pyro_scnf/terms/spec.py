"""Name training terms by words, dicts, import paths, classes or objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from pyro_scnf._spec import read_spec
from pyro_scnf.terms.agreement import Agreement
from pyro_scnf.terms.balance import Balance
from pyro_scnf.terms.base import Part, Step, TrainingTerm
from pyro_scnf.terms.classification import Classification
from pyro_scnf.terms.consistency import Consistency
from pyro_scnf.terms.energy import Energy

__all__ = ["TERMS", "TermSpec", "Terms", "active", "make_terms", "needs_of", "weighted"]

TERMS: dict[str, Callable[..., TrainingTerm]] = {
    "agreement": Agreement,
    "balance": Balance,
    "classification": Classification,
    "consistency": Consistency,
    "energy": Energy,
}
"""Training terms by name."""

RESERVED = ("nll", "loss", "grad_norm", "val_nll", "val_error", "val_bits_per_dim", "step", "epoch")
"""Names that logs use for something else."""

TermSpec = str | Mapping[str, object] | Callable[..., TrainingTerm] | TrainingTerm
"""The ways to name a training term, see :func:`make_terms`."""

Terms = TermSpec | Iterable[TermSpec] | None
"""The ways to name several training terms, see :func:`make_terms`."""


def make_terms(specs: Terms) -> dict[str, TrainingTerm]:
    """The training terms that ``specs`` names, by the names that logs and ``loss.parts`` use.

    :param specs: one term or several (``None``, or an empty list, for no term), or the ``terms`` of a loss. A
        term is one of

        * a word of :data:`TERMS`, with options: ``"agreement:weight=300,purity=0.98"``;
        * the import path of your own class, ``"my_package.my_module.MyTerm:weight=2"``;
        * a mapping with the key ``name`` and the options, ``{"name": "balance", "weight": 200}``;
        * a class or a function that returns a term;
        * a :class:`TrainingTerm`.
    :raises ValueError: for an unknown word, wrong options, or anything that is no term.

    Of two terms with the same name, the second is called ``NAME_2``. A term is also called ``NAME_2`` if its
    name is that of another column of the log (``nll``, ``loss``, ``grad_norm``).

    >>> terms = make_terms(["classification:weight=20,end=0.3", "balance"])
    >>> terms["classification"].weight_at(1.0)
    6.0
    """
    if specs is None:
        specs = ()
    if isinstance(specs, Mapping):
        of_a_loss = [value for value in specs.values() if isinstance(value, TrainingTerm)]
        specs = of_a_loss if len(of_a_loss) == len(specs) else [specs]
    if isinstance(specs, str) or callable(specs):
        specs = [specs]
    if not isinstance(specs, Iterable):
        raise ValueError(f"terms={specs!r}: expected one term or several, such as ['balance:weight=2']")
    terms: dict[str, TrainingTerm] = {}
    for spec in specs:
        term = _make_term(spec)
        name, number = term.name, 1
        while name in (*terms, *RESERVED):
            number += 1
            name = f"{term.name}_{number}"
        terms[name] = term
    return terms


def active(terms: Mapping[str, TrainingTerm], progress: float) -> dict[str, TrainingTerm]:
    """The terms whose weight is not 0 when the share ``progress`` of training is done."""
    return {name: term for name, term in terms.items() if term.weight_at(progress) > 0}


def needs_of(terms: Mapping[str, TrainingTerm]) -> frozenset[Part]:
    """The parts of a step that ``terms`` need."""
    return frozenset().union(*(term.needs for term in terms.values()))


def weighted(terms: Mapping[str, TrainingTerm], step: Step) -> dict[str, Tensor]:
    """Each term times its weight at this step. Terms of weight 0 are left out.

    :raises ValueError: if the ``nats`` of a term is no scalar.
    """
    values = {name: term(step) for name, term in active(terms, step.progress).items()}
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.dim():
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"terms: nats of {name} returns a {got}, expected a scalar tensor")
    return values


def _make_term(spec: TermSpec) -> TrainingTerm:
    if isinstance(spec, TrainingTerm):
        return spec
    named = read_spec(spec, TERMS, "terms")
    if isinstance(named.factory, TrainingTerm):
        raise ValueError(f"terms={spec!r}: a ready term takes no options; give the term itself, or its class")
    term = named.make()
    if not isinstance(term, TrainingTerm):
        raise ValueError(f"{named.label} makes a {type(term).__name__}, expected a TrainingTerm")
    return term
