r"""The log-probability of each value of a label, with all other discrete sites summed out.

Pyro's :func:`~pyro.ops.contract.contract_to_tensor` finds the order in which to sum over labels and to
multiply over plates. In a group with a regime of its own, for example, it sums over the label of each member,
then multiplies the members, then sums over the regime.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_scnf._shapes import in_double
from pyro_scnf.posterior.draws import Site, is_term, over_plates, plates_of

if TYPE_CHECKING:

    class Packed(Tensor):
        """A tensor whose dimensions have letters. Those of size 1 are left out."""

        _pyro_dims: str


__all__ = ["Joint", "sum_out"]

Letters = frozenset[str]
"""Plates, or enumerated sites. Pyro gives each a letter."""


class Joint(NamedTuple):
    """What a model says of a label."""

    log_prob: Tensor
    r""":math:`\log p(x_n, y_n = k \mid \theta_s)` in nats, ``(S, *plates, K)``."""
    shared: tuple[str, ...]
    """Hidden sites that rows have in common. With any, :math:`x_n` stands for the data of all these rows."""


def sum_out(
    trace: Trace, sites: Mapping[str, Site], label: Site, drawn: Collection[str], nesting: int
) -> Joint:
    """The joint of the data and of each value of a label.

    :param trace: after ``compute_log_prob``.
    :param drawn: the sites that have draws.
    :raises ValueError: if a site depends on a label in whose plates it does not lie, or on labels in plates
        that cross.
    """
    trace.symbolize_dims()
    plates_by_name, dims = trace.plate_to_symbol, trace.symbol_to_dim
    hidden = {
        site["infer"]["_enumerate_symbol"]: site
        for site in sites.values()
        if "_enumerate_dim" in site["infer"]
    }
    terms = [
        _Term.of(name, site, plates_by_name, name in drawn)
        for name, site in sites.items()
        if is_term(site) and (name not in drawn or _depends_on_labels(site, nesting))
    ]
    _check_plates(terms, hidden, plates_by_name)
    plates = _letters(label, plates_by_name)
    row, group = _row_of(plates, terms, {k: _letters(site, plates_by_name) for k, site in hidden.items()})
    sizes = {plates_by_name[plate.name]: max(plate.size, 1) for plate in plates_of(label)}
    sizes |= {letter: size for term in row for letter, size in term.sizes.items()}
    ring, letters = _LogSums(dim_to_size=sizes), set(hidden)
    kept = next((letter for letter in letters & sizes.keys() if hidden[letter] is label), None)
    is_tied = group != plates
    parts = [_contract(row, group, letters if is_tied else letters - {kept}, set(), ring)]
    if any(term.is_drawn for term in row):
        # Latents z of single rows have draws. The joint is that of x and y given z, so it is less log p(z).
        prior = [term for term in row if term.is_drawn or not term.is_observed]
        parts.append(ring.inv(_contract(prior, group, letters, set(), ring)))
    if kept is not None and is_tied:  # times the probability of each value of one label, given these data
        values = _contract(row, plates, letters, {kept}, ring)
        parts += [values, ring.inv(ring.sumproduct([values], [kept]))]
    joint: Tensor = packed.unpack(_add(parts), dims)
    joint = joint[..., None] if kept is None else joint.movedim(dims[kept], -1)
    shared = [
        hidden[letter]["name"]
        for letter in sorted(letters & sizes.keys())
        if not plates <= _letters(hidden[letter], plates_by_name)
    ]
    return Joint(over_plates(joint, label, nesting, event_dim=1), tuple(shared))


def _depends_on_labels(site: Site, nesting: int) -> bool:
    """Whether the log-probability of a site has a dimension for the labels of an enumerated one."""
    return any(size > 1 for size in site["log_prob"].shape[: -1 - nesting])


def _letters(site: Site, plates: Mapping[str, str]) -> Letters:
    """The vectorised plates around a site."""
    return frozenset(plates[plate.name] for plate in plates_of(site))


class _Term(NamedTuple):
    """The log-probability of a site, masked but not scaled."""

    name: str
    log_prob: Packed
    plates: Letters
    is_observed: bool
    is_drawn: bool

    @classmethod
    def of(cls, name: str, site: Site, plates: Mapping[str, str], is_drawn: bool) -> _Term:
        """The mask does not apply to an enumerated site, whose probabilities add up to 1, seen or not."""
        letters = site["infer"]["_dim_to_symbol"]
        log_prob = packed.pack(in_double(site["unscaled_log_prob"]), letters)
        if "_enumerate_dim" not in site["infer"]:
            log_prob = packed.scale_and_mask(log_prob, mask=packed.pack(site["mask"], letters))
        return cls(name, log_prob, _letters(site, plates), site["is_observed"], is_drawn)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of its dimensions by their letters."""
        return dict(zip(self.log_prob._pyro_dims, self.log_prob.shape, strict=True))

    def depends_on(self, letters: Collection[str]) -> bool:
        """Whether it has a dimension of any of these letters."""
        return not set(letters).isdisjoint(self.log_prob._pyro_dims)


def _check_plates(terms: Iterable[_Term], hidden: Mapping[str, Site], plates: Mapping[str, str]) -> None:
    """Raise if a site depends on a label, but lies outside its plates. It would tie rows together."""
    for letter, label in hidden.items():
        for term in terms:
            if term.depends_on(letter) and not term.plates >= _letters(label, plates):
                raise ValueError(
                    f"site {term.name!r} depends on the label {label['name']!r} but lies outside its plates"
                )


def _row_of(
    plates: Letters, terms: Iterable[_Term], hidden: Mapping[str, Letters]
) -> tuple[list[_Term], Letters]:
    """The terms of a row of a label, and the plates that they have in common.

    A row is all that lies in the plates of the label, unless a hidden site outside of them ties it to other
    rows. It is then all that lies in the plates of that site.
    """
    row: list[_Term] = []
    used, count = set[str](), -1
    while count < len(row):
        count = len(row)
        row = [term for term in terms if term.plates >= plates or term.depends_on(used)]
        used = {letter for letter in hidden if any(term.depends_on(letter) for term in row)}
        plates = plates.intersection(*(hidden[letter] for letter in used))
    return row, plates


def _contract(
    terms: Iterable[_Term], plates: Letters, hidden: set[str], kept: set[str], ring: LogRing
) -> Packed:
    """Sum enumerated sites out, apart from ``kept``, and multiply over all plates but ``plates``.

    With a site in ``kept``, factors that do not depend on it are left out.
    """
    tree: OrderedDict[Letters, list[Packed]] = OrderedDict()
    for term in terms:
        tree.setdefault(term.plates, []).append(term.log_prob)
    try:
        total: Packed = contract_to_tensor(tree, hidden, plates, kept, ring=ring)
    except NotImplementedError:
        names = sorted(term.name for term in terms if term.depends_on(hidden))
        raise ValueError(
            f"sites {names} depend on labels in plates that cross, so the sum over these labels has too many "
            "terms; make one of the plates sequential"
        ) from None
    return total


class _LogSums(LogRing):
    """Sums of exponentials that subtract the largest sum of terms.

    Pyro's ring subtracts the largest value of each term by itself. In float64, it gets ``log(0)`` where two
    terms favour different labels by more than 745 nats, as two images of one object may. Labels with few
    neighbours are summed out first, so that tables of chains and stars of labels stay small.
    """

    def sumproduct(self, terms: Iterable[Packed], dims: Iterable[str]) -> Packed:
        left, pending = list(terms), set(dims)
        while pending:
            dim = min(sorted(pending), key=lambda dim: len(set("".join(_letters_beside(dim, left)))))
            pending.remove(dim)
            chosen = [term for term in left if dim in term._pyro_dims]
            if chosen:
                left = [term for term in left if dim not in term._pyro_dims]
                left.append(_sum_over(dim, _add(chosen)))
        return _add(left)


def _letters_beside(dim: str, terms: Iterable[Packed]) -> list[str]:
    return [term._pyro_dims for term in terms if dim in term._pyro_dims]


def _sum_over(dim: str, term: Packed) -> Packed:
    summed = term.logsumexp(term._pyro_dims.index(dim))
    return _named(summed, term._pyro_dims.replace(dim, ""))


def _add(terms: Iterable[Packed]) -> Packed:
    first, *others = packed.broadcast_all(*terms)
    return _named(reduce(torch.add, others, first), first._pyro_dims) if others else first


def _named(value: Tensor, letters: str) -> Packed:
    named = cast("Packed", value)
    named._pyro_dims = letters
    return named
