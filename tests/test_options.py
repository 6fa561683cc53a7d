"""Options: every number, switch and word of every constructor is checked, and none is ignored silently."""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyro_scnf as scnf
from pyro_scnf import analysis, baselines, datasets, distributions, flows, priors, terms, transforms
from pyro_scnf import nn as networks
from pyro_scnf.priors import ConditionalFlowPrior, GaussianMixturePrior, make_prior
from pyro_scnf.terms import Balance, make_terms

NAN, INF = math.nan, math.inf
PACKAGES = (priors, flows, networks, terms, transforms, distributions, analysis, baselines)
CHANGES_AND_SPLITS = (  # those of the data sets that take no files
    datasets.FeatureDropout,
    datasets.ImageAugment,
    datasets.Jitter,
    datasets.RandomShift,
    datasets.random_affine,
    datasets.random_shift,
    datasets.keep_labels,
    datasets.keep_labels_per_class,
    datasets.thin_classes,
    datasets.neighbour_graph,
    datasets.label_evidence,
    datasets.toy,
)
VECTOR = {"event_shape": (4,)}
SMALL = {"event_shape": (4,), "steps": 1, "width": 4, "blocks": 1}


def net(inputs: int = 2, outputs: int = 4, context_dim: int = 0) -> nn.Module:
    return networks.MLP(inputs, outputs, (4,), context_dim=context_dim)


def flow() -> scnf.SemiConditionalFlow:
    return scnf.SemiConditionalFlow(flows.glow((4,), levels=2, steps=1, width=4), "gmm", 3)


def plane_model() -> scnf.SemiSupervisedModel:
    """A model of the plane, whose decision boundaries are lines half way between means."""
    return scnf.SemiSupervisedModel(
        scnf.SemiConditionalFlow(flows.glow((2,), steps=1, width=4), "flowgmm", 3)
    )


PLANE = {"model": plane_model(), "x": torch.zeros(1, 2)}
COUNTS = {  # integer data, which are dequantised
    "model": PLANE["model"],
    "x": torch.tensor([[0, 1], [2, 3], [4, 0]]),
    "prepare": torch.abs,
    "bins": 5,
    "draws": 2,
    "average": "posterior",
    "batch_size": 2,
}
FEW = {  # rows of a table for the comparators
    "x": torch.randn(24, 3, generator=torch.Generator().manual_seed(0)),
    "y": torch.where(torch.arange(24) < 12, torch.arange(24) % 3, -1),
    "x_test": torch.zeros(2, 3),
    "num_classes": 3,
    "seed": 1,
}
TRAINING = {"weight": 2.0, "start": 0.5, "end": 1.5, "until": 0.5}
DISTORTION = {"flip": True, "rotate": 10.0, "zoom": 0.1, "shear": 5.0}
CONTINUOUS = {"solver": "rk4", "divergence": "gaussian", "end_time": 0.4, "learn_end_time": False}
SIZES = {"in_channels": 2, "out_channels": 4, "context_dim": 3}

VALID: dict[Callable[..., Any], dict[str, Any]] = {
    scnf.ClassProbs: {"num_classes": 3, "probs": "em", "em_decay": 0.5},
    scnf.SemiConditionalFlow: {
        "transform": flows.glow((4,), levels=2, steps=1, width=4),
        "prior": "gmm",
        "num_classes": 3,
        "aux_scale": "learnable",
        "init_aux_scale": 0.5,
    },
    scnf.SemiSupervisedModel: {
        "flow": flow(),
        "class_probs": "uniform",
        "num_labelled": 5,
        "num_unlabelled": 7,
        "labelled_weight": 0.5,
        "balanced_labels": True,
    },
    scnf.bits_per_dim: {"log_prob": torch.zeros(2), "event_shape": (1, 4, 4), "bins": 16},
    priors.ClassConditionalPrior: {**VECTOR, "num_classes": 3, "covariates": 2},
    priors.GaussianMixturePrior: {
        **VECTOR,
        "num_classes": 3,
        "covariance": "full",
        "pooled": 0.5,
        "components": 2,
        "means": "random",
        "separation": 2.0,
        "scale": 0.5,
        "fit_means": "em",
        "fit_scales": "em",
        "fit_weights": "gradient",
        "learn_means": None,
        "learn_scales": None,
        "em_decay": 0.5,
    },
    priors.StudentTMixturePrior: {
        **VECTOR,
        "num_classes": 3,
        "covariance": "full",
        "pooled": 0.5,
        "df": 4.0,
        "fit_df": "gradient",
        "components": 2,
        "means": "latents",
        "separation": 2.0,
        "scale": 0.5,
        "fit_means": "em",
        "fit_scales": "em",
        "fit_weights": "gradient",
        "learn_means": None,
        "learn_scales": None,
        "em_decay": 0.5,
    },
    priors.ConditionalFlowPrior: {
        **SMALL,
        "num_classes": 3,
        "levels": 1,
        "scale": "tanh",
        "coupling": "double",
        "conv": "plain",
        "base": "learnable",
        "base_scale": 0.5,
        "embedding_dim": 2,
        "covariates": 2,
    },
    priors.make_prior: {"spec": "gmm", **VECTOR, "num_classes": 3},
    flows.glow: {
        **SMALL,
        "levels": 2,
        "coupling": "alternate",
        "scale": "clamp",
        "conv": "plain",
        "logit": 0.1,
        "gaussianize": None,
        "quantiles": None,
        "latent_dim": 3,
        "context_dim": 2,
        "factor_out": True,
    },
    flows.leading_components: {"event_shape": (6,), "latent_dim": 2, "couplings": 1, "width": 4},
    flows.realnvp: {
        **VECTOR,
        "levels": 1,
        "couplings": 2,
        "width": 4,
        "blocks": 1,
        "scale": "sigmoid",
        "logit": 0.1,
        "gaussianize": None,
        "quantiles": None,
        "latent_dim": 3,
        "context_dim": 2,
    },
    flows.ffjord: {
        **VECTOR,
        "levels": 1,
        "blocks": 1,
        "hidden": (4,),
        "layer": "concat",
        "activation": "softplus",
        "solver": "rk4",
        "divergence": "gaussian",
        "end_time": 0.4,
        "learn_end_time": False,
        "logit": 0.1,
        "gaussianize": None,
        "quantiles": None,
        "latent_dim": 3,
        "context_dim": 2,
    },
    flows.atanov2019_mnist: {"latent_dim": 98},
    networks.Dynamics: {
        **VECTOR,
        "hidden": (4,),
        "layer": "concat",
        "activation": "softplus",
        "context_dim": 3,
    },
    networks.MLP: {**SIZES, "hidden": (4, 4), "activation": "tanh", "dropout": 0.5},
    networks.ResidualMLP: {**SIZES, "width": 4, "blocks": 1, "norm": "none"},
    networks.ConvNet: {**SIZES, "width": 4, "kernel_size": 3, "last_kernel_size": 1},
    networks.ResidualConvNet: {**SIZES, "width": 4, "blocks": 1, "norm": "blocks", "kernel_size": 1},
    networks.SkipConvNet: {**SIZES, "width": 4, "blocks": 1, "kernel_size": 1},
    networks.PooledConvNet: {**SIZES, "width": 4, "blocks": 1, "kernel_size": 1},
    networks.ChannelNorm: {"channels": 4, "event_dim": 1},
    networks.Conditioner: {
        "first": nn.Linear(2, 4),
        "body": nn.ReLU(),
        "last": nn.Linear(4, 4),
        "width": 4,
        "event_dim": 1,
        "context_dim": 3,
    },
    networks.make_net: {"spec": "mlp", "event_shape": torch.Size((4,)), **SIZES},
    terms.TrainingTerm: TRAINING,
    terms.Balance: TRAINING,
    terms.Agreement: {**TRAINING, "purity": 0.9},
    terms.Classification: {**TRAINING, "targets": "labels"},
    terms.Consistency: {**TRAINING, "kind": "likelihood"},
    terms.Energy: {**TRAINING, "jacobian": 0.5},
    terms.log_agreement: {
        "log_posterior": torch.zeros(2, 3).log_softmax(-1),
        "pairs": torch.tensor([[0, 1]]),
        "purity": 0.9,
    },
    transforms.FlowTransform: {**VECTOR, "base_shape": (4,)},
    transforms.ConditionalFlowTransform: {**VECTOR, "base_shape": (4,), "context_dim": 3},
    transforms.ActNorm: VECTOR,
    transforms.ContinuousFlow: {**VECTOR, "net": networks.Dynamics(4, (4,)), **CONTINUOUS},
    transforms.ConditionalContinuousFlow: {
        **VECTOR,
        "net": networks.Dynamics(4, (4,), context_dim=3),
        "context_dim": 3,
        **CONTINUOUS,
    },
    transforms.Solver: {
        "method": "dopri5",
        "rtol": 1e-4,
        "atol": 1e-5,
        "tighter": 0.5,
        "steps": None,
        "adjoint": True,
        "max_evaluations": 100,
    },
    transforms.record_solves: {"energies": True},
    transforms.InvertibleConv1x1: {**VECTOR, "parameterization": "lu", "init": "identity"},
    transforms.AffineCoupling: {**VECTOR, "net": net(), "scale": "tanh", "flip": True, "split": 2},
    transforms.MaskedAffineCoupling: {**VECTOR, "net": net(4, 8), "scale": "tanh", "invert": True},
    transforms.ConditionalAffineCoupling: {
        **VECTOR,
        "net": net(2, 4, 3),
        "context_dim": 3,
        "scale": "tanh",
        "flip": True,
        "split": 2,
    },
    transforms.ConditionalMaskedAffineCoupling: {
        **VECTOR,
        "net": net(4, 8, 3),
        "context_dim": 3,
        "scale": "tanh",
        "invert": True,
    },
    transforms.MultiScale: {"stages": [transforms.ActNorm((4,))], "latent_dim": 2},
    transforms.ConditionalMultiScale: {
        "stages": [
            transforms.ConditionalAffineCoupling((4,), net(2, 4, 3), context_dim=3),
        ],
        "latent_dim": 2,
    },
    transforms.multi_scale: {"stages": [transforms.ActNorm((4,))], "latent_dim": 2},
    transforms.kept_channels: {"channels": 6},
    transforms.checkerboard_mask: {**VECTOR, "invert": True},
    transforms.Squeeze: {"event_shape": (1, 4, 4), "order": "channel-major"},
    transforms.Flatten: {"event_shape": (1, 4, 4)},
    transforms.Flip: VECTOR,
    transforms.Permute: VECTOR,
    transforms.Logit: {**VECTOR, "alpha": 0.1},
    transforms.MarginalGaussianization: {**VECTOR, "cells": 4},
    transforms.PrincipalComponents: VECTOR,
    transforms.QuantileSpline: {**VECTOR, "bins": 4},
    transforms.dequantize: {"x": torch.tensor([0, 3]), "bins": 4},
    transforms.quantize: {"x": torch.tensor([0.1, 0.9]), "bins": 4},
    distributions.BaseNormal: {**VECTOR, "scale": "learnable", "init_scale": 0.5},
    baselines.M1: {**VECTOR, "latent_dim": 2, "hidden": (4,)},
    baselines.M2: {"features": 2, "num_classes": 3, "style_dim": 2, "hidden": (4,), "alpha": 0.1},
    baselines.M1M2: {
        **VECTOR,
        "num_classes": 3,
        "latent_dim": 2,
        "style_dim": 2,
        "hidden": (4,),
        "style_hidden": (4,),
        "kl_weight": 0.5,
        "alpha": 0.1,
    },
    baselines.nearest_neighbours: {**FEW, "scale": "standard"},
    baselines.logistic_regression: {**FEW, "scale": "standard"},
    baselines.random_forest: {**FEW, "trees": 2},
    baselines.gradient_boosting: FEW,
    baselines.dropout_net: {**FEW, "scale": "standard", "steps": 2},
    baselines.pi_model: {**FEW, "scale": "standard", "steps": 2},
    baselines.self_training: {**FEW, "base": "logistic", "scale": "standard"},
    baselines.label_spreading_rbf: {**FEW, "scale": "standard", "rows": 20},
    baselines.label_spreading: {**FEW, "scale": "standard", "dims": 2, "k": 3},
    baselines.poisson_learning: {**FEW, "scale": "standard", "dims": 2, "k": 3},
    baselines.gaussian_mixture: {**FEW, "scale": "standard", "dims": 2, "components": 1},
    baselines.latent_classifier: {**FEW, "scale": "standard", "weight": 0.1, "steps": 2},
    baselines.m1: {**FEW, "steps": 2},
    baselines.m2: {**FEW, "scale": "standard", "dims": 2, "steps": 2},
    baselines.m1m2: {**FEW, "latent_dim": 2, "steps": 2},
    datasets.FeatureDropout: {"rate": 0.5, "scale": 0.1, "fill": -1.0, "bins": 17},
    datasets.ImageAugment: {**DISTORTION, "bins": 17, "shift": 2, "jitter": 0.1, "shift_labelled": 3},
    datasets.Jitter: {"scale": 0.1, "bins": 17},
    datasets.RandomShift: {"pixels": 2},
    datasets.random_affine: {**DISTORTION, "x": torch.zeros(2, 1, 4, 4)},
    datasets.random_shift: {"x": torch.zeros(2, 1, 4, 4), "pixels": 2},
    datasets.keep_labels: {
        "y": torch.arange(12) % 3,
        "num_classes": 3,
        "labels": 2,
        "split": "stratified",
        "seed": 1,
        "classes": (0, 2),
    },
    datasets.keep_labels_per_class: {"y": torch.arange(12) % 3, "per_class": 2, "seed": 1},
    datasets.thin_classes: {
        "x": torch.zeros(12, 2),
        "y": torch.arange(12) % 3,
        "shares": (1.0, 0.5, 0.0),
        "seed": 1,
        "keep": (0, 1),
    },
    datasets.neighbour_graph: {
        "x": torch.rand(12, 1, 4, 4),
        "k": 3,
        "features": "deskew",
        "components": 1,
        "exact": True,
    },
    datasets.label_evidence: {
        "graph": datasets.neighbour_graph(torch.randn(12, 2), 3),
        "y": torch.arange(12) % 3,
        "num_classes": 3,
        "method": "spreading",
        "alpha": 0.5,
        "sharpness": 2.0,
        "mix": 0.1,
    },
    datasets.toy: {
        "name": "circles",
        "num_train": 20,
        "num_test": 10,
        "labels_per_class": 2,
        "noise": 0.05,
        "factor": 0.4,
        "shares": (1.0, 0.5),
        "seed": 1,
    },
    analysis.evaluate: {**COUNTS, "y": torch.tensor([0, 1, 2]), "temperature": 2.0},
    analysis.label_log_probs: {**COUNTS, "temperature": 2.0},
    analysis.fit_temperature: {**COUNTS, "y": torch.tensor([0, 1, 2])},
    analysis.temperature_from_training: {
        "model": COUNTS["model"],
        "x": COUNTS["x"].float(),
        "y": torch.tensor([0, 1, 2]),
        "folds": 2,
        "iterations": 1,
        "batch_size": 2,
    },
    analysis.reliability: {"log_probs": torch.zeros(2, 1), "y": torch.tensor([0, 0]), "bins": 4},
    analysis.evaluate_plane: {**PLANE, "points": 3, "margin": 0.5},
    analysis.latent_plane: {**PLANE, "draws": 4, "points": 3},
    analysis.boundary_distance: {**PLANE, "batch_size": 2},
    analysis.swap_labels: {
        "flow": scnf.SemiConditionalFlow(flows.glow((2,), steps=1, width=4), "flow", 3),
        "x": torch.zeros(2, 2),
        "y": torch.tensor([0, 1]),
        "keep_aux": False,
    },
}
"""A valid call of everything public with options, in which each option is given."""

NO_OPTIONS = {
    terms.Scored,  # what the losses hand to terms
    terms.Step,
    terms.active,  # the losses check `progress`
    transforms.SolveRecord,  # what record_solves fills
    distributions.ConcatDistribution,  # their options are those of every distribution of PyTorch
    distributions.Transformed,
    analysis.Calibration,  # what fit_temperature returns
    analysis.read_log,  # a path of any kind
    analysis.reconstruct,  # its numbers of components may be 0
}


class Option(NamedTuple):
    """An option of a constructor, with the kinds of values that its annotation allows."""

    owner: Callable[..., Any]
    name: str
    whole: bool
    number: bool
    flag: bool
    words: tuple[str, ...] | None
    sizes: bool
    none: bool

    @property
    def checked(self) -> bool:
        return self.whole or self.number or self.flag or self.sizes or self.words is not None


def alternatives(hint: object) -> list[object]:
    """The members of a union, of unions within it too."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [one for member in typing.get_args(hint) for one in alternatives(member)]
    return [hint]


def options_of(owner: Callable[..., Any]) -> list[Option]:
    """The options of ``owner``, from the annotations of its signature."""
    hints = typing.get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
    found = []
    for name in inspect.signature(owner).parameters:
        members = alternatives(hints.get(name))
        literals = [word for m in members if typing.get_origin(m) is Literal for word in typing.get_args(m)]
        part = any(typing.get_origin(m) in (Mapping, Iterable) for m in members)  # or a dict, or several
        sequence = any(typing.get_origin(m) is Sequence and typing.get_args(m) == (int,) for m in members)
        found.append(
            Option(
                owner,
                name,
                whole=int in members,
                number=float in members,
                flag=bool in members,
                words=tuple(literals) or (("",) if str in members and not part else None),
                sizes=sequence or torch.Size in members,
                none=type(None) in members,
            )
        )
    return [option for option in found if option.checked]


def public() -> dict[Callable[..., Any], list[Option]]:
    """Everything callable that the packages export, with its options."""
    members = [getattr(package, name) for package in PACKAGES for name in package.__all__]
    members += [scnf.ClassProbs, scnf.SemiConditionalFlow, scnf.SemiSupervisedModel, scnf.bits_per_dim]
    members += CHANGES_AND_SPLITS
    callables = [m for m in members if inspect.isclass(m) or inspect.isfunction(m)]
    callables = [m for m in callables if not (inspect.isclass(m) and issubclass(m, Exception))]
    return {member: options for member in callables if (options := options_of(member))}


PUBLIC = public()
OPTIONS = [
    option
    for options in PUBLIC.values()
    for option in options
    if option.owner not in NO_OPTIONS
    and option.name not in {"fill", "classes", "keep"}  # they may be 0 or below
]


def test_every_public_constructor_with_options_is_in_the_table():
    assert set(PUBLIC) - NO_OPTIONS == set(VALID)
    assert {option.name for option in OPTIONS} >= {"df", "split", "purity", "learn_means", "scale", "hidden"}
    for option in OPTIONS:
        assert option.name in VALID[option.owner], f"{option.owner.__name__}({option.name}=...)"


@pytest.mark.parametrize("owner", VALID, ids=lambda owner: owner.__name__)
def test_the_valid_calls_are_valid_also_with_numbers_of_numpy(owner):
    valid = VALID[owner]
    owner(**valid)
    as_numpy = {bool: np.bool_, int: np.int64, float: np.float64}
    owner(**{name: as_numpy.get(type(value), lambda v: v)(value) for name, value in valid.items()})


NO_NUMBERS = st.one_of(
    st.text(max_size=5),
    st.sampled_from([True, False, NAN, INF, -INF, 1j, b"2", {}, object(), 10**400, "2", "1.5"]),
    st.sampled_from([np.bool_(True), np.float64(NAN), torch.tensor(NAN), torch.tensor(True), np.str_("2")]),
)


def wrong_values(option: Option) -> st.SearchStrategy[object]:
    """Values that ``option`` cannot have."""
    wrong: list[st.SearchStrategy[object]] = []
    if option.number or option.whole:
        wrong.append(NO_NUMBERS)
        wrong.append(st.integers(max_value=-1))
        if option.number:
            wrong.append(st.floats(max_value=-1e-9) | st.sampled_from([1e300, 1e39]))
        else:
            wrong.append(st.floats())
        if not option.sizes:
            wrong.append(st.sampled_from([[1], (2,), torch.ones(2), np.ones(1)]))
    elif option.flag:
        wrong.append(st.text(max_size=5))
        wrong.append(st.sampled_from(["no", "false", "maybe", 0, 1, 0.0, [], torch.tensor(True)]))
    elif option.words is not None:
        words = option.words
        wrong.append(st.text(max_size=8).filter(lambda word: word not in words))
        wrong.append(st.sampled_from([0, 1.5, True, [], ["full"], {}, (), b"lu"]))
    if option.sizes:
        entries = [(0,), (-1,), (2.5,), ("4",), (True,), (NAN,), (None,), (10**30,), ((4,),)]
        wrong.append(st.sampled_from([*entries, "4", 2.5, NAN]))
    if not option.none:
        wrong.append(st.none())
    return st.one_of(wrong)


def several(options: Sequence[Option]) -> Any:
    ids = [f"{option.owner.__name__}-{option.name}" for option in options]
    return pytest.mark.parametrize("option", options, ids=ids)


@several(OPTIONS)
@given(data=st.data())
def test_wrong_values_are_refused_by_name(option, data):
    """The message begins with the argument that the user wrote, whatever is built inside."""
    value = data.draw(wrong_values(option))
    with pytest.raises(ValueError, match=rf"\b{option.name}\b") as caught:
        option.owner(**{**VALID[option.owner], option.name: value})
    assert re.match(rf"(\w+(\.\w+)?: )?{option.name}\b", str(caught.value)), str(caught.value)


RANGES: list[tuple[Callable[..., Any], str, list[float]]] = [
    (priors.GaussianMixturePrior, "scale", [0, 1e-20, 1e20]),
    (priors.GaussianMixturePrior, "separation", [1e20]),
    (priors.StudentTMixturePrior, "df", [0, 1, 2, 1e9]),
    (priors.ConditionalFlowPrior, "base_scale", [0, 1e-20, 1e20]),
    (scnf.SemiConditionalFlow, "init_aux_scale", [0, 1e-20, 1e20]),
    (distributions.BaseNormal, "init_scale", [0, 1e-20, 1e20]),
    (terms.Balance, "until", [0, 1.01]),
    (terms.Balance, "weight", [1e20]),
    (terms.Agreement, "purity", [0, 1]),
    (transforms.Logit, "alpha", [1]),
    (transforms.MarginalGaussianization, "cells", [0]),
    (flows.glow, "gaussianize", [0]),
    (flows.glow, "quantiles", [3]),
    (transforms.QuantileSpline, "bins", [3]),
    (flows.glow, "logit", [1]),
    (flows.glow, "latent_dim", [0, 5]),
    (flows.glow, "levels", [0, 3]),
    (flows.realnvp, "couplings", [0]),
    (transforms.AffineCoupling, "split", [0, 4]),
    (flows.ffjord, "levels", [0, 4]),
    (transforms.ContinuousFlow, "end_time", [0]),
    (transforms.Solver, "rtol", [0, 1]),
    (transforms.Solver, "tighter", [0, 1.5]),
    (transforms.Solver, "max_evaluations", [0]),
    (networks.ConvNet, "kernel_size", [0, 2]),
    (networks.ConvNet, "last_kernel_size", [0, 2]),
    (networks.SkipConvNet, "kernel_size", [0, 2]),
    (networks.PooledConvNet, "kernel_size", [0, 2]),
    (networks.MLP, "dropout", [1]),
    (transforms.kept_channels, "channels", [0, 1]),
]


@pytest.mark.parametrize(("owner", "name", "values"), RANGES, ids=[f"{o.__name__}-{n}" for o, n, _ in RANGES])
def test_numbers_out_of_range_are_refused_by_name(owner, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^(\w+: )?{name}={re.escape(str(value))}[:,] "):
            owner(**{**VALID[owner], name: value})


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("prior", ["gmm", "gmm:covariance=full", "student-t"])
def test_the_extreme_scales_that_are_taken_have_densities(prior, scale):
    made = make_prior(prior + f",scale={scale}" if ":" in prior else f"{prior}:scale={scale}", (2,), 3)
    y = torch.tensor([0, 1, 2])
    with torch.no_grad():
        z = made.condition(y).sample()
        assert made.condition(y).log_prob(z).isfinite().all()
        assert made.condition(y).log_prob(z + 10).isfinite().all()
    base = distributions.BaseNormal((2,), init_scale=scale)
    assert base().base_dist.scale.detach().numpy() == pytest.approx(scale)


def test_a_student_t_of_many_degrees_of_freedom_is_the_gaussian():
    """The normaliser is a difference of millions of nats. Single precision would be off by 0.9 nats."""
    z = torch.linspace(-3, 3, 7)[:, None]
    for df, tolerance in ((5.0, None), (1e3, None), (1e6, 1e-5), (1e8, 1e-5)):
        prior = priors.StudentTMixturePrior((1,), 1, df=df)
        loc = prior.loc.detach()[0]
        found = prior.condition(torch.zeros(7, dtype=torch.long)).log_prob(z)
        exact = torch.distributions.StudentT(torch.tensor(df).double(), loc.double())
        assert torch.allclose(found.double(), exact.log_prob(z.double())[:, 0], atol=1e-5)
        if tolerance is not None:
            normal = torch.distributions.Normal(loc, 1.0).log_prob(z)[:, 0]
            assert torch.allclose(found, normal, atol=tolerance * 10)


# -- truth values ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("word", "expected"),
    [("true", True), ("Yes", True), ("ON", True), ("False", False), ("no", False), ("oFF", False)],
)
def test_words_for_truth_values(word, expected):
    prior = make_prior(f"gmm:covariance=isotropic,learn_means={word}", (2,), 3)
    assert isinstance(prior.loc, nn.Parameter) is expected


@pytest.mark.parametrize("word", ["maybe", "1", "0", "None", "'no'", "yess", "(True,)"])
def test_other_words_are_no_truth_values(word):
    with pytest.raises(
        ValueError, match=r"^prior=.gmm:learn_means=.*: learn_means=.*: expected True or False"
    ):
        make_prior(f"gmm:learn_means={word}", (2,), 3)


class Tied(GaussianMixturePrior):
    """A prior of one's own. Its truth value is not checked by its own code."""

    def __init__(self, event_shape, num_classes, *, tied: bool = False, bound: float):
        super().__init__(event_shape, num_classes)
        self.tied, self.bound = tied, bound


def test_declared_truth_values_of_ones_own_classes_are_checked():
    path = f"{__name__}.Tied"
    assert make_prior(f"{path}:tied=yes,bound=2", (2,), 3).tied is True
    for spec in (f"{path}:tied=maybe,bound=2", {"name": Tied, "tied": "no", "bound": 2}):
        with pytest.raises(ValueError, match=r"Tied.*: tied='\w+': expected True or False"):
            make_prior(spec, (2,), 3)


@pytest.mark.parametrize(
    "options",
    [
        {"covariance": "full", "scale": 0.5, "learn_means": False},
        {"covariance": "shared", "means": "random", "separation": 3, "learn_scales": True},
    ],
)
def test_strings_dicts_and_keyword_arguments_give_the_same(options):
    text = "gmm:" + ",".join(f"{name}={str(value).lower()}" for name, value in options.items())
    made = []
    for build in (
        lambda: make_prior(text, (2,), 3),
        lambda: make_prior({"name": "gmm", **options}, (2,), 3),
        lambda: GaussianMixturePrior((2,), 3, **options),
        lambda: make_prior({"name": GaussianMixturePrior, **options}, (2,), 3),
    ):
        torch.manual_seed(0)
        made.append(build())
    for other in made[1:]:
        assert dict(other.named_parameters()).keys() == dict(made[0].named_parameters()).keys()
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in made[0].state_dict().items())


# -- names of options ------------------------------------------------------------------------------
GMM = (
    "covariance, components, means, separation, scale, fit_means, fit_scales, fit_weights, learn_means, "
    "learn_scales, pooled, em_decay"
)


@pytest.mark.parametrize(
    ("make", "label", "listed"),
    [
        (lambda: make_prior("gmm:foo=1", (2,), 3), "prior='gmm:foo=1'", GMM),
        (lambda: make_prior({"name": "gmm", "foo": 1}, (2,), 3), "prior='gmm'", GMM),
        (lambda: make_prior({"name": "flowgmm", "foo": 1}, (2,), 3), "prior='flowgmm'", GMM),
        (lambda: make_prior({"name": GaussianMixturePrior, "foo": 1}, (2,), 3), "Prior", GMM),
        (lambda: make_prior("pyro_scnf.priors.GaussianMixturePrior:foo=1", (2,), 3), "foo=1'", GMM),
        (lambda: make_prior({"name": "flow", "foo": 1}, (2,), 3), "prior='flow'", "steps, width, blocks"),
        (
            lambda: make_terms("agreement:foo=1"),
            "terms='agreement:foo=1'",
            "weight, start, end, until, purity",
        ),
        (lambda: make_terms({"name": Balance, "foo": 1}), "terms=Balance", "weight, start, end, until"),
        (lambda: flows.glow((2,), net="mlp:foo=1"), "net='mlp:foo=1'", "hidden, activation, dropout"),
        (
            lambda: flows.realnvp((2,), net={"name": "mlp", "foo": 1}),
            "net='mlp'",
            "hidden, activation, dropout",
        ),
        (lambda: make_prior({"name": Tied, "foo": 1}, (2,), 3), "prior=Tied", "tied, bound"),
    ],
)
def test_unknown_options_list_those_there_are(make, label, listed):
    with pytest.raises(ValueError, match=f"{re.escape(label)}.*: no option 'foo', expected one of {listed}"):
        make()


@pytest.mark.parametrize("option", ["event_shape", "num_classes"])
def test_what_the_model_gives_is_no_option(option):
    with pytest.raises(ValueError, match=f"no option '{option}', expected one of covariance"):
        make_prior({"name": "gmm", option: 3}, (2,), 3)


def test_what_the_flow_gives_is_no_option_of_a_network():
    with pytest.raises(ValueError, match=r"net='mlp:context_dim=2': no option 'context_dim', .* of hidden"):
        flows.glow((2,), net="mlp:context_dim=2")


def test_keys_that_are_no_names():
    with pytest.raises(ValueError, match="prior='gmm': no option 3, expected one of covariance"):
        make_prior({"name": "gmm", 3: 1}, (2,), 3)


def test_missing_options_of_ones_own_class_are_named():
    with pytest.raises(ValueError, match="prior=Tied: it needs the option 'bound'"):
        make_prior(Tied, (2,), 3)


def test_a_factory_that_takes_other_arguments():
    def deaf(inputs, outputs):
        return nn.Linear(inputs, outputs)

    with pytest.raises(ValueError, match=r"net=.*deaf: it cannot be called with \(in_channels, out_"):
        flows.glow((2,), net=deaf)
    with pytest.raises(ValueError, match=r"prior=.*<lambda>: it cannot be called with \(event_shape, num_cl"):
        make_prior(lambda: None, (2,), 3)


def test_a_type_error_inside_a_factory_is_its_own():
    """It is no wrong option, and keeps its traceback."""

    class Faulty(GaussianMixturePrior):
        def __init__(self, event_shape, num_classes):
            super().__init__(event_shape, num_classes)
            len(num_classes)

    def faulty(weight=1.0):
        return Balance(weight) + 1

    def faulty_net(inputs, outputs, context_dim=0):
        return networks.MLP(inputs, outputs, colour="red")

    for make, message in (
        (lambda: make_prior(Faulty, (2,), 3), r"^object of type 'int' has no len\(\)"),
        (lambda: make_terms(faulty), "^unsupported operand"),
        (lambda: flows.glow((2,), net=faulty_net), "unexpected keyword argument 'colour'$"),
    ):
        with pytest.raises(TypeError, match=message):
            make()


def test_a_value_error_inside_a_factory_names_what_the_user_wrote():
    for make, message in (
        (lambda: make_prior("gmm:scale=abc", (2,), 3), r"^prior='gmm:scale=abc': scale='abc': expected a"),
        (lambda: make_terms({"name": "agreement", "purity": 2}), "^terms='agreement': Agreement: purity=2:"),
        (lambda: flows.glow((2,), net="mlp:hidden=8"), "^net='mlp:hidden=8': hidden=8: expected the widths"),
        (
            lambda: make_prior({"name": "flow", "net": "mlp:hidden=8"}, (2,), 3),
            "^prior='flow': net='mlp:hidden=8': hidden=8:",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_prior("builtins.dict", (2,), 3), "prior='builtins.dict': dict expected at most 1"),
        (
            lambda: make_prior(lambda shape, k: net(), (2,), 3),
            "prior: got a MLP, expected a ClassConditional",
        ),
        (lambda: make_prior(net(), (2,), 3), "prior: got a MLP, expected a Class"),
        (
            lambda: make_prior({"name": GaussianMixturePrior((2,), 3), "scale": 1}, (2,), 3),
            "takes no options",
        ),
        (
            lambda: make_prior(GaussianMixturePrior((2,), 3), (4,), 3),
            r"its event_shape \(2,\) is not .* \(4,\)",
        ),
        (lambda: make_prior(GaussianMixturePrior((2,), 3), (2,), 4), "num_classes=4, but the prior has 3"),
        (lambda: make_terms({"name": Balance(), "weight": 2}), "a ready term takes no options"),
        (lambda: flows.glow((2,), net=net()), "net: got a MLP, which is a network"),
        (lambda: flows.glow((2,), net=lambda a, b, context_dim: 3), "net=3: expected a network"),
        (lambda: transforms.AffineCoupling((4,), "mlp"), "net='mlp': expected a network"),
        (
            lambda: flows.glow((1, 4, 4), levels=1, net="conv:kernel_size=5"),
            "kernel_size=5: expected at most 3",
        ),
        (lambda: networks.MLP(2, 2, activation=nn.ReLU()), r"activation=ReLU\(\): expected 'relu', 'tanh'"),
        (lambda: transforms.Permute((2,), [1, 0]), "Permute: permutation is of type list"),
        (
            lambda: transforms.Permute((2,), torch.tensor([1.0, 0.0])),
            "permutation: expected the integers 0..1",
        ),
        (
            lambda: transforms.MaskedAffineCoupling((2,), net(), mask=[1, 0]),
            "mask is of type list, expected a tensor",
        ),
        (lambda: transforms.FlowTransform((4,), 0), "base_shape=0: expected"),
        (lambda: networks.MLP(2, 2, hidden=()), "hidden is empty"),
        (lambda: transforms.compose(transforms.ActNorm((2,))), "layers is a ActNorm, expected a list"),
        (lambda: transforms.compose(layer for layer in [transforms.ActNorm((2,))]), "layers is a generator"),
        (lambda: transforms.multi_scale(transforms.ActNorm((2,))), "stages is a ActNorm, expected a list"),
        (lambda: flows.glow((1, 3, 4)), r"^event_shape=\(1, 3, 4\): .* expected even H and W$"),
        (lambda: flows.realnvp((1, 3, 4)), r"^event_shape=\(1, 3, 4\): .* even H and W, or levels=1$"),
    ],
)
def test_parts_of_another_kind(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_plain_network_has_nothing_to_initialise():
    flow = flows.realnvp((4,), couplings=2, net=lambda a, b, context_dim: nn.Linear(a, b))
    x = torch.randn(8, 4)
    assert torch.allclose(flow.initialize(x), flow.inverse_and_ladj(x)[0])


# -- import paths ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import a_package_that_is_not_installed", "ModuleNotFoundError: No module named 'a_package_that"),
        ("from math import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("def broken(:", "SyntaxError: "),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("undefined", "NameError: name 'undefined'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("kind", ["prior", "terms", "net"])
def test_a_module_that_fails_shows_its_cause(text, cause, kind, tmp_path, monkeypatch):
    (tmp_path / "their_faulty_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    path = "their_faulty_module.Part:width=3"
    make = {
        "prior": lambda: make_prior(path, (2,), 3),
        "terms": lambda: make_terms(path),
        "net": lambda: flows.glow((2,), net=path),
    }[kind]
    message = (
        f"^{kind}='their_faulty_module.Part': the module 'their_faulty_module' fails at its import, {cause}"
    )
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert type(caught.value.__cause__).__name__ == cause.partition(":")[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.part.Prior", "expected one of 'flow', .*; there is no module 'no_such_package'"),
        ("pyro_scnf.nowhere.Prior", "expected one of 'flow', .*; there is no module 'pyro_scnf.nowhere'"),
        ("pyro_scnf.priors.NoSuchPrior", "the module 'pyro_scnf.priors' has no 'NoSuchPrior'"),
        ("gmmm", "expected one of 'flow', 'gmm', .*, 'student-t', 'ffjord' or the import path of a class$"),
        ("a b.c", ".* or the import path of a class$"),
        ("x..y", ".* or the import path of a class$"),
    ],
)
def test_unknown_words_and_paths_are_told_apart(path, message):
    with pytest.raises(ValueError, match=f"^prior='{path}': {message}"):
        make_prior(path, (2,), 3)


def test_a_lazy_name_that_is_missing(monkeypatch):
    module = ModuleType("their_lazy_module")

    def missing(name: str) -> object:
        raise AttributeError(f"module has no attribute {name}")

    module.__getattr__ = missing
    monkeypatch.setitem(sys.modules, "their_lazy_module", module)
    with pytest.raises(ValueError, match="the module 'their_lazy_module' has no 'Part'"):
        make_prior("their_lazy_module.Part", (2,), 3)


# -- options that nothing would use ----------------------------------------------------------------
def conditional() -> Any:
    return flows.glow((4,), steps=1, width=4, context_dim=3)


UNUSED: dict[str, tuple[Callable[[], object], str, str]] = {
    **{
        f"{name} beside flow": (
            lambda name=name, value=value: ConditionalFlowPrior((4,), 3, flow=conditional(), **{name: value}),
            f"{name}={value!r}",
            "flow",
        )
        for name, value in {
            "steps": 4,
            "width": 64,
            "blocks": 2,
            "levels": 1,
            "scale": "sigmoid",
            "coupling": "double",
            "conv": "lu",
            "net": "mlp",
        }.items()
    },
    **{
        f"{name} beside net in {make.__name__}": (
            lambda make=make, name=name: make((4,), net="mlp", **{name: 2}),
            f"{name}=2",
            "net",
        )
        for make in (flows.glow, flows.realnvp)
        for name in ("width", "blocks")
    },
    "width beside net in a prior": (
        lambda: make_prior({"name": "flow", "net": "mlp", "width": 64}, (4,), 3),
        "width=64",
        "net",
    ),
    "prior_width": (
        lambda: scnf.presets.scnf_mnist("gmm", prior_width=64),
        "prior_width=64",
        "prior='flow'",
    ),
    "init_scale": (lambda: distributions.BaseNormal((2,), "unit", 2.0), "init_scale=2.0", "scale='unit'"),
    "base_scale": (
        lambda: ConditionalFlowPrior((2,), 2, base="unit", base_scale=2.0),
        "base_scale=2.0",
        "base='unit'",
    ),
    "init_aux_scale of unit": (
        lambda: scnf.SemiConditionalFlow(
            flows.glow((4,), levels=2, steps=1), "gmm", 2, aux_scale="unit", init_aux_scale=2.0
        ),
        "init_aux_scale=2.0",
        "aux_scale='unit'",
    ),
    "init_aux_scale of nothing": (
        lambda: scnf.SemiConditionalFlow(flows.glow((4,), steps=1), "gmm", 2, init_aux_scale=1.0),
        "init_aux_scale=1.0",
        "factors no latents out",
    ),
    "levels of a vector": (lambda: flows.realnvp((4,), levels=2), "levels=2", "couplings"),
    "couplings of an image": (lambda: flows.realnvp((1, 4, 4), couplings=2), "couplings=2", "levels"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_no_option_is_ignored(name):
    make, option, other = UNUSED[name]
    with pytest.raises(ValueError, match=rf"{re.escape(option)}: .*{re.escape(other)}"):
        make()


def test_effective_defaults_are_those_of_the_pages():
    """``None`` stands for a default that the docstring tells."""
    built = [
        ConditionalFlowPrior((4,), 3),
        ConditionalFlowPrior((4,), 3, steps=4, width=64, blocks=2, levels=1),
    ]
    shapes = [{name: p.shape for name, p in prior.named_parameters()} for prior in built]
    assert shapes[0] == shapes[1]
    assert torch.allclose(distributions.BaseNormal((2,))().base_dist.scale, torch.ones(2))
    for make in (flows.glow, flows.realnvp):
        default, given = make((4,)), make((4,), width=64, blocks=2)
        assert [p.shape for p in default.parameters()] == [p.shape for p in given.parameters()]


# -- class probabilities ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "{} is a list: expected .* give torch.as_tensor"),
        (np.array([0.5, 0.5]), "{} is a ndarray: expected"),
        (3, "{} is a int: expected"),
        (None, "{} is a NoneType: expected"),
        ("even", "{}='even': expected 'uniform', 'learnable', 'em' or a tensor of 2 class weights"),
        (torch.ones(3), r"{} has shape \(3,\), expected \(2,\)"),
        (torch.ones(1, 2), r"{} has shape \(1, 2\), expected \(2,\)"),
        (torch.tensor([NAN, 1.0]), "{}: expected 2 finite, non-negative weights"),
        (torch.tensor([INF, 1.0]), "{}: expected 2 finite, non-negative weights"),
        (torch.tensor([-1.0, 2.0]), "{}: expected 2 finite, non-negative weights"),
        (torch.zeros(2), "{}: expected 2 finite, .* with a positive sum"),
        (torch.tensor([True, False]), "{}: expected 2 finite"),
        (nn.Parameter(torch.ones(2)), "{} requires a gradient"),
    ],
)
def test_weights_that_are_none(weights, message):
    with pytest.raises(ValueError, match="^" + message.format("probs")):
        scnf.ClassProbs(2, weights)
    flow = scnf.SemiConditionalFlow(flows.glow((4,), steps=1, width=4), "gmm", 2)
    with pytest.raises(ValueError, match="^" + message.format("class_probs")):
        scnf.SemiSupervisedModel(flow, weights)


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([0.25, 0.75]),
        torch.tensor([1.0, 3.0]),
        torch.tensor([1, 3]),
        torch.tensor([2**40, 3 * 2**40]),
        torch.tensor([1e38, 3e38]),
        torch.tensor([1e-38, 3e-38]),
        torch.tensor([1.0, 3.0], dtype=torch.float64),
        torch.tensor([1.0, 3.0], dtype=torch.float16),
    ],
)
def test_weights_are_divided_by_their_sum(weights):
    probs = scnf.ClassProbs(2, weights)
    assert torch.allclose(probs().probs.float(), torch.tensor([0.25, 0.75]), atol=1e-3)
    assert probs.logits.dtype == (weights.dtype if weights.is_floating_point() else torch.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 0.5, 0.0], "class_probs is a list: expected a ClassProbs, a tensor"),
        (np.ones(3), "class_probs is a ndarray"),
        ("learnable", "class_probs is a str"),
        (scnf.ClassProbs(2), "class_probs: 2 classes, but the flow has 3"),
    ],
)
def test_class_probabilities_of_a_flow(value, message):
    flow, x = scnf.SemiConditionalFlow(flows.glow((4,), steps=1, width=4), "gmm", 3), torch.randn(2, 4)
    for use in (lambda: flow.log_prob(x, value), lambda: flow.posterior(x, value)):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_class_without_labels_is_said():
    with pytest.warns(UserWarning, match=r"y holds no label of class 1, 3, so its probability is 0"):
        probs = scnf.ClassProbs.from_labels(torch.tensor([0, 2, 2, -1]), 4)
    assert torch.allclose(probs().probs, torch.tensor([1 / 3, 0, 2 / 3, 0]))
    full = scnf.ClassProbs.from_labels(torch.tensor([0, 1, 1, 1]), 2)  # pytest would raise a warning here
    assert torch.allclose(full().probs, torch.tensor([0.25, 0.75]))


def test_an_explicit_weight_of_zero_is_a_class_of_probability_zero():
    """The loss is finite, and the class takes no row."""
    flow = scnf.SemiConditionalFlow(flows.glow((4,), steps=1, width=4), "gmm", 3)
    model, x = scnf.SemiSupervisedModel(flow, torch.tensor([0.0, 1.0, 1.0])), torch.randn(5, 4)
    for guide in (scnf.exact_guide, scnf.EMGuide(model)):
        loss = scnf.elbo(model, guide)(x)
        assert loss.item() == pytest.approx(-model.log_prob(x).sum().item(), rel=1e-5)
    assert (model.posterior(x).probs[:, 0] == 0).all()
