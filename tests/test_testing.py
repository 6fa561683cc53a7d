"""``pyro_scnf.testing`` on members from outside the package: the right ones pass, and each fault is found."""

from __future__ import annotations

import functools
import inspect
import pickle
import re
import textwrap
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken import FOUND_BY_ONE, FOUND_BY_SEVERAL, case_of
from broken_terms import TERMS_FOUND_BY_ONE, TERMS_FOUND_BY_SEVERAL, term_case
from third_party import (
    ContextShift,
    Entropy,
    LaplacePrior,
    LinearPrior,
    ModesPrior,
    StudentTPrior,
    Tails,
    ViewLikelihood,
)
from torch import nn
from torch.distributions import constraints

import pyro_scnf as scnf
from pyro_scnf import testing
from pyro_scnf.testing import (
    MODULE_CHECKS,
    PRIOR_CHECKS,
    TERM_CHECKS,
    TRANSFORM_CHECKS,
    Case,
    ConformanceError,
    ModuleCase,
    PriorCase,
    TermCase,
    Tolerances,
    applicable,
    check_module,
    check_prior,
    check_term,
    check_transform,
    densities,
)

DOCS = Path(__file__).parents[1] / "docs"
BROKEN_TERMS = {cls.__name__: cls for cls in (*TERMS_FOUND_BY_ONE, *TERMS_FOUND_BY_SEVERAL)}
BROKEN = {cls.__name__: cls for cls in (*FOUND_BY_ONE, *FOUND_BY_SEVERAL)}


# -- members that are right ----------------------------------------------------
def test_a_transform_of_a_third_party():
    check_transform(lambda: Tails((3,)), (3,))
    check_transform(lambda: Tails((2, 3, 2)), (2, 3, 2))


def test_a_conditional_transform_of_a_third_party():
    check_transform(lambda: ContextShift((4,), 3), (4,), context_dim=3)


def test_a_prior_of_a_third_party():
    check_prior(LaplacePrior, (4,), 3)
    check_prior({"name": LaplacePrior, "spread": 2.0}, (2, 1, 2), 2)


def test_terms_of_a_third_party():
    check_term(Entropy)
    check_term(Entropy(2.0, end=0.5), 5)
    check_term(ViewLikelihood, common={"view": -1.0})
    check_term({"name": "third_party.ViewLikelihood", "temperature": 3.0}, 2, common={"view": -1.0})


@pytest.mark.parametrize(
    ("member", "page"),
    [
        (Tails, "layer"),
        (ContextShift, "layer"),
        (LaplacePrior, "prior"),
        (LinearPrior, "prior"),
        (Entropy, "term"),
    ],
)
def test_they_are_those_of_the_documentation(member, page):
    source = textwrap.indent(inspect.getsource(member), "    ", lambda line: bool(line.strip()))
    assert source in (DOCS / f"own_{page}.rst").read_text(encoding="utf-8")


class Shift(scnf.transforms.FlowTransform):
    """A volume-preserving layer: its log-determinant depends on nothing."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.loc = nn.Parameter(torch.zeros(event_shape))

    def _inverse_ladj(self, x, *context):
        return x - self.loc, x.new_zeros(x.shape[: x.dim() - len(self.event_shape)])

    def _forward_ladj(self, z, *context):
        return z + self.loc, z.new_zeros(z.shape[: z.dim() - len(self.event_shape)])


class Exponential(Shift):
    """x = exp(z) - 1: data above -1, no parameter in either direction."""

    codomain = constraints.independent(constraints.greater_than(-1), 1)

    def __init__(self, event_shape):
        scnf.transforms.FlowTransform.__init__(self, event_shape)

    def _inverse_ladj(self, x, *context):
        z = x.log1p()
        return z, -z.sum(-1)

    def _forward_ladj(self, z, *context):
        return z.expm1(), z.sum(-1)


class ShiftedExponential(Shift):
    """x = exp(z) + loc: the log-determinant has a parameter in one direction, and none in the other."""

    @property
    def codomain(self):
        return constraints.independent(constraints.greater_than(self.loc), 1)

    def _inverse_ladj(self, x, *context):
        z = (x - self.loc).log()
        return z, -z.sum(-1)

    def _forward_ladj(self, z, *context):
        return z.exp() + self.loc, z.sum(-1)


class AboveTwo(Exponential):
    """x = exp(z) + 2."""

    codomain = constraints.independent(constraints.greater_than(2), 1)

    def _inverse_ladj(self, x, *context):
        z = (x - 2).log()
        return z, -z.sum(-1)

    def _forward_ladj(self, z, *context):
        return z.exp() + 2, z.sum(-1)


class MarkovPrior(scnf.priors.ClassConditionalPrior):
    """Correlated components, a base class method more, and draws without gradients."""

    def __init__(self, event_shape, num_classes):
        super().__init__(event_shape, num_classes)
        self.raw = nn.Parameter(torch.randn(num_classes))

    def condition(self, y, temperature=1.0):
        dim = self.event_shape.numel()
        steps = torch.arange(dim, device=y.device)
        decay = self.raw[y].sigmoid()[..., None, None] ** (steps[:, None] - steps).abs()
        loc = decay.new_zeros(dim)
        return NoRsample(loc, scale_tril=temperature * torch.linalg.cholesky(decay))


class NoRsample(dist.MultivariateNormal):
    has_rsample = False


@pytest.mark.parametrize(
    "case",
    [
        Case(lambda: Shift((3,)), (3,)),
        Case(lambda: Shift((2, 2, 1)), (2, 2, 1)),
        Case(lambda: Exponential((3,)), (3,), data=lambda shape: torch.rand(shape) - 0.5),
        Case(lambda: ShiftedExponential((3,)), (3,), data=lambda shape: torch.rand(shape) + 1),
        Case(lambda: Tails((1,)), (1,), seed=7),
        Case(lambda: ContextShift((1,), 1), (1,), context_dim=1, perturbation=0.01),
    ],
    ids=lambda case: f"{type(case.build()).__name__}{case.event_shape}",
)
def test_unusual_transforms_pass(case):
    check_transform(case)


@pytest.mark.parametrize(
    ("build", "shape", "classes"),
    [
        (MarkovPrior, (5,), 2),
        (LaplacePrior, (1,), 1),
        (LaplacePrior, (40,), 2),  # too many numbers for the checks by Monte Carlo
        (LaplacePrior, (16,), 2),
        (functools.partial(LaplacePrior, spread=30.0), (2,), 5),
    ],
)
def test_unusual_priors_pass(build, shape, classes):
    check_prior(build, shape, classes)
    made = PriorCase(lambda: build(shape, classes), shape, classes)
    assert ("density_integrates_to_one" in applicable(PRIOR_CHECKS, made)) == (shape != (40,))


@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize(
    "build",
    [
        LaplacePrior,
        StudentTPrior,
        functools.partial(StudentTPrior, df=2.0),
        functools.partial(StudentTPrior, df=3.0),
        ModesPrior,
    ],
    ids=["laplace", "cauchy", "student-t-2", "student-t-3", "modes"],
)
def test_heavy_tails_and_modes_pass(build, shape, classes, monkeypatch):
    told = []
    tells = densities._tells
    monkeypatch.setattr(densities, "_tells", lambda weights: told.append(tells(weights)) or told[-1])
    check_prior(build, shape, classes)
    assert len(told) == 2 * classes + 1
    assert all(told)  # every estimate is precise enough to find a fault


def test_an_estimate_that_is_too_noisy_is_no_fault(monkeypatch):
    monkeypatch.setattr(densities, "DRAWS", 400)
    case = PriorCase(lambda: StudentTPrior((16,), 2), (16,), 2)
    weights = []
    tells = densities._tells
    monkeypatch.setattr(densities, "_tells", lambda values: weights.append(tells(values)) or weights[-1])
    for name in ("density_integrates_to_one", "draws_follow_the_density"):
        PRIOR_CHECKS[name](case)
    assert not any(weights)


def test_modes_that_ignore_the_temperature():
    class Same(ModesPrior):
        def condition(self, y, temperature=1.0):
            return super().condition(y)

    with pytest.raises(ConformanceError, match="lie 1 times as far apart as at 1"):
        PRIOR_CHECKS["temperature"](PriorCase(lambda: Same((4,), 2), (4,), 2))


def test_any_module_with_a_score():
    build = functools.partial(nn.Linear, 2, 1)
    check_module(ModuleCase(build, lambda rows: (torch.randn(rows, 2),), lambda module, x: module(x)[:, 0]))
    case = ModuleCase(nn.Dropout, lambda rows: (torch.ones(rows, 2),), lambda module, x: module(x))
    with pytest.raises(ConformanceError, match="Dropout fails") as caught:
        check_module(case)
    assert "training_mode" in caught.value.failures


# -- members with a fault ------------------------------------------------------
@functools.cache
def failures(cls: type[nn.Module]) -> dict[str, str]:
    case = case_of(cls)
    with pytest.raises(ConformanceError) as caught:
        check_prior(case) if isinstance(case, PriorCase) else check_transform(case)
    assert caught.value.member.startswith(f"{cls.__name__} of event shape ")
    return caught.value.failures


@pytest.mark.parametrize("name", [cls.__name__ for cls in FOUND_BY_ONE])
def test_the_one_check_that_finds_it(name):
    assert set(failures(BROKEN[name])) == {FOUND_BY_ONE[BROKEN[name]]}


@pytest.mark.parametrize("name", [cls.__name__ for cls in FOUND_BY_SEVERAL])
def test_the_checks_that_find_it(name):
    assert FOUND_BY_SEVERAL[BROKEN[name]] <= set(failures(BROKEN[name]))


@functools.cache
def term_failures(cls) -> dict[str, str]:
    with pytest.raises(ConformanceError) as caught:
        check_term(term_case(cls))
    assert caught.value.member == cls.__name__
    return caught.value.failures


@pytest.mark.parametrize("name", [cls.__name__ for cls in TERMS_FOUND_BY_ONE])
def test_the_one_check_that_finds_the_fault_of_a_term(name):
    assert set(term_failures(BROKEN_TERMS[name])) == {TERMS_FOUND_BY_ONE[BROKEN_TERMS[name]]}


@pytest.mark.parametrize("name", [cls.__name__ for cls in TERMS_FOUND_BY_SEVERAL])
def test_the_checks_that_find_the_fault_of_a_term(name):
    assert TERMS_FOUND_BY_SEVERAL[BROKEN_TERMS[name]] <= set(term_failures(BROKEN_TERMS[name]))


def test_every_check_of_terms_finds_some_fault():
    found = set().union(*map(term_failures, BROKEN_TERMS.values()))
    assert set(TERM_CHECKS) - found == {"cuda"}


@pytest.mark.parametrize(
    ("checks", "kind"), [(TRANSFORM_CHECKS, Case), (PRIOR_CHECKS, PriorCase)], ids=["transforms", "priors"]
)
def test_every_check_finds_some_fault(checks, kind):
    members = [cls for cls in BROKEN.values() if isinstance(case_of(cls), kind)]
    found = set().union(*(failures(cls) for cls in members))
    assert set(checks) - found <= {"cuda"} | (set(MODULE_CHECKS) if kind is PriorCase else set())


# -- messages ------------------------------------------------------------------
def test_a_message_says_the_member_the_check_and_the_numbers():
    case = case_of(BROKEN["MissingFactor"])
    with pytest.raises(ConformanceError) as caught:
        check_transform(case)
    message = str(caught.value)
    assert message.startswith(
        "MissingFactor of event shape (3,) fails the check log_determinant: log-determinant of "
        "inverse_and_ladj, against the Jacobian by automatic differentiation: got -"
    )
    got, expected = (float(message.split(word)[1].split()[0].rstrip(",")) for word in ("got ", "expected "))
    assert got == pytest.approx(expected / 2, rel=1e-6)


def test_a_message_holds_every_failed_check_on_a_line():
    with pytest.raises(ConformanceError) as caught:
        check_transform(case_of(BROKEN["OneBatchDimension"]))
    first, *lines = str(caught.value).splitlines()
    assert first == "OneBatchDimension of event shape (3,) fails 2 checks:"
    assert [line.split(":")[0] for line in lines] == ["  batch_shapes", "  vmap"]
    assert isinstance(caught.value.__cause__, Exception)


def test_errors_survive_pickling():
    error = ConformanceError("A", {"kind": "no"})
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.failures) == ("A fails the check kind: no", {"kind": "no"})


def test_an_error_of_a_member_is_the_reason():
    with pytest.raises(ConformanceError, match=r"Abstract .* becomes_a_pyro_module: TypeError: .*metaclass"):
        TRANSFORM_CHECKS["becomes_a_pyro_module"](case_of(BROKEN["Abstract"]))


def test_an_error_while_building_is_raised_as_it_is():
    with pytest.raises(TypeError, match="event_shape"):
        check_transform(lambda: Tails(), (3,))


# -- options -------------------------------------------------------------------
class Approximate(Tails):
    """The forward direction is inexact, as that of a solver."""

    def _forward_ladj(self, z, *context):
        x, ladj = super()._forward_ladj(z)
        return x * (1 + 1e-6), ladj


def test_tolerances():
    with pytest.raises(ConformanceError, match="the tolerance 1e-09"):
        check_transform(lambda: Approximate((3,)), (3,))
    check_transform(lambda: Approximate((3,)), (3,), tolerances=Tolerances(round_trip=1e-4, log_det=1e-4))


def test_checks_to_skip():
    case = case_of(BROKEN["Lambda"])
    check_transform(lambda: case.build(), (3,), skip=("pickles", "saves", "files_hold_no_data"))
    with pytest.raises(
        ValueError, match=r"skip=\['pickle'\]: expected names of checks, kind, data_in_codomain"
    ):
        check_transform(lambda: Tails((3,)), (3,), skip=("pickle",))


def test_parameters_without_a_gradient():
    check_transform(Case(case_of(BROKEN["UnusedParameter"]).build, (3,), idle=("spare",)))


def test_missing_and_wrong_arguments():
    with pytest.raises(ValueError, match="event_shape is missing"):
        check_transform(lambda: Tails((3,)))
    with pytest.raises(ValueError, match="event_shape or num_classes is missing"):
        check_prior(LaplacePrior, (3,))
    with pytest.raises(ValueError, match="build is a ready prior"):
        check_prior(LaplacePrior((3,), 2), (3,), 2)
    with pytest.raises(ValueError, match="build is a Case: give it the other arguments"):
        check_transform(Case(lambda: Tails((3,)), (3,)), skip=("pickles",))
    with pytest.raises(ValueError, match="build is a PriorCase: give it the other arguments"):
        check_prior(PriorCase(lambda: LaplacePrior((3,), 2), (3,), 2), (3,), 2)
    with pytest.raises(ValueError, match="data='unit interval': expected 'real', 'unit' or a callable"):
        check_transform(lambda: Tails((3,)), (3,), data="unit interval")
    with pytest.raises(
        ConformanceError, match=r"fails the check kind: event_shape is \(3,\), expected \(4,\)"
    ):
        check_transform(lambda: Tails((3,)), (4,))
    with pytest.raises(ConformanceError, match="Tails is no ConditionalFlowTransform"):
        check_transform(lambda: Tails((3,)), (3,), context_dim=2)


def test_what_to_give_as_build():
    example = re.escape("a callable without arguments that makes a fresh one, such as lambda: ")
    with pytest.raises(ValueError, match=rf"build is a ready Tails: give {example}Tails\(\(3,\)\)"):
        check_transform(Tails((3,)), (3,))
    with pytest.raises(
        ValueError, match=rf"Tails\(\) fails \(.*event_shape.*\): give {example}Tails\(\(3,\)\)"
    ):
        check_transform(Tails, (3,))
    with pytest.raises(ValueError, match=rf"{example}ContextShift\(\(4,\), 3\)"):
        check_transform(ContextShift, (4,), context_dim=3)
    with pytest.raises(ValueError, match=r"such as check_prior\(LaplacePrior, \(3,\), 2\)"):
        check_prior(LaplacePrior((3,), 2), (3,), 2)
    with pytest.raises(ValueError, match=rf"{example}LaplacePrior\(\(3,\), 2\)"):
        PriorCase(LaplacePrior, (3,), 2)
    with pytest.raises(ValueError, match="build='Tails': expected a callable"):
        check_transform("Tails", (3,))


def test_what_a_term_case_needs():
    with pytest.raises(ValueError, match="build is a ready Entropy: give a callable"):
        TermCase(Entropy())
    with pytest.raises(ValueError, match="build is a TermCase: give it the other arguments"):
        check_term(TermCase(Entropy), 4)
    with pytest.raises(ValueError, match="terms='entropie': expected one of 'agreement'"):
        check_term("entropie")
    with pytest.raises(ValueError, match="build=3: expected a term"):
        check_term(3)
    with pytest.raises(ValueError, match=r"common=\{'pairs': -1.0\}: expected the parts labelled, unlabel"):
        check_term(Entropy, common={"pairs": -1.0})
    with pytest.raises(ValueError, match=r"rows=\(1, 6\): expected two numbers of at least 2"):
        TermCase(Entropy, rows=(1, 6))
    with pytest.raises(ValueError, match="num_classes=1: expected at least 2"):
        check_term(Entropy, 1)
    with pytest.raises(ValueError, match=r"skip=\['kinds'\]: expected names of checks, kind, one_number"):
        check_term(Entropy, skip=("kinds",))


def test_a_message_about_a_term_holds_the_numbers():
    with pytest.raises(ConformanceError, match=r"ForgetsTheFlow fails the check response_to_common: ") as one:
        check_term(term_case(BROKEN_TERMS["ForgetsTheFlow"]))
    expected = "derivative by view.common of a step with evidence, of rows that stand for 1.5 data: got 0, "
    assert f"{expected}expected -1.5 at index (0,)" in str(one.value)


def test_checks_of_terms_that_are_skipped():
    check_term(TermCase(BROKEN_TERMS["ForgetsTheFlow"], skip=("response_to_common",)))


def test_which_data_to_give():
    with pytest.raises(ConformanceError, match=r'outside the codomain, .*: give data="unit"$') as error:
        check_transform(lambda: scnf.transforms.Logit((3,)), (3,))
    assert set(error.value.failures) == {"data_in_codomain"}
    with pytest.raises(ConformanceError, match="give data= a callable that makes data inside"):
        check_transform(lambda: AboveTwo((3,)), (3,))


def test_checks_apply_by_what_a_member_has():
    transform, conditional = (
        Case(lambda: Tails((3,)), (3,)),
        Case(lambda: ContextShift((3,), 2), (3,), context_dim=2),
    )
    extra = set(applicable(TRANSFORM_CHECKS, conditional)) - set(applicable(TRANSFORM_CHECKS, transform))
    assert "contexts_broadcast" in extra
    flip = Case(lambda: scnf.transforms.Flip((3,)), (3,))
    assert "every_parameter_learns" not in applicable(TRANSFORM_CHECKS, flip)
    for name in ("contexts_broadcast", "every_parameter_learns"):
        TRANSFORM_CHECKS[name](flip)  # does not apply, and returns


# -- what a check leaves as it was ---------------------------------------------
@pytest.mark.parametrize("cls", [Tails, BROKEN["WrongSign"]])
def test_global_state_is_left_as_it_was(cls):
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(False)
    parameter = pyro.param("mine", torch.ones(2))
    before = pyro.util.get_rng_state()
    with torch.no_grad():
        try:
            check_transform(lambda: cls((3,)), (3,))
        except ConformanceError:
            assert cls is not Tails
        assert not torch.is_grad_enabled()
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    assert (before["numpy"][1] == after["numpy"][1]).all()
    assert torch.get_default_dtype() == torch.float64
    assert not dist.is_validation_enabled()
    assert not pyro.poutine.is_validation_enabled()
    assert list(pyro.get_param_store()) == ["mine"]
    assert pyro.param("mine") is parameter


def test_results_do_not_depend_on_the_state_before():
    case = case_of(BROKEN["WrongSign"])
    messages = []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        with pytest.raises(ConformanceError) as caught:
            check_transform(case)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# -- the module itself ---------------------------------------------------------
def test_it_needs_no_pytest():
    for path in Path(inspect.getfile(testing)).parent.glob("*.py"):
        assert "import pytest" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", {**TRANSFORM_CHECKS, **PRIOR_CHECKS, **TERM_CHECKS, **MODULE_CHECKS})
def test_every_check_is_documented(name):
    page = (DOCS / "api" / "testing.rst").read_text(encoding="utf-8")
    assert f"``{name}``" in page
