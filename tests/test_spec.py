"""Words, dicts and import paths that name a part, and what the parts remember of them."""

from __future__ import annotations

import copy

import pytest
import torch

import pyro_scnf as scnf
from pyro_scnf._spec import describe, read_spec
from pyro_scnf.nn import NETS, make_net

VECTOR, IMAGE = torch.Size((4,)), torch.Size((2, 4, 4))


def known(**options):
    return options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("part", {}),
        ("part:", {}),
        ("part:a=1,b=0.5", {"a": 1, "b": 0.5}),
        ("part:a=(32, 32),b=[1,2]", {"a": (32, 32), "b": [1, 2]}),
        ("part:a=true,b=False,c=None", {"a": True, "b": False, "c": None}),
        ("part:a=full, b=student-t", {"a": "full", "b": "student-t"}),
        ("part:a='x,y'", {"a": "x,y"}),
    ],
)
def test_words_with_options(text, options):
    named = read_spec(text, {"part": known}, "part")
    assert named.factory is known
    assert named.options == options
    assert named.description == {"name": "part", **options}


def test_a_dict_may_hold_a_word_with_options_and_add_to_them():
    named = read_spec({"name": "part:a=1,b=2", "b": 3}, {"part": known}, "part")
    assert named.options == {"a": 1, "b": 3}
    named = read_spec({"name": known, "b": 3}, {}, "part")
    assert (named.factory, named.options, named.description) == (known, {"b": 3}, None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("other", "part='other': expected one of 'part' or the import path of a class"),
        ("no.such.module.Class", "part='no.such.module.Class': expected one of 'part'"),
        ("part:full", "part option 'full': expected key=value"),
        ("part:a=1;b=2", "part option 'a=1;b=2': expected key=value"),
        ("part:**x", r"part option '\*\*x': expected key=value"),
        ("part:a=1)+(b=2", "expected key=value"),
        ("part:a=1)(b=2", "expected key=value"),
        ("part:a=1).x(b=2", "expected key=value"),
        ("part:a=1,a=2", "part option 'a': given twice"),
        ("part:a=" + "(" * 5000, "expected key=value"),
        ("part:name=other", "no option may be called 'name'"),
        ("..x", r"part='..x': expected one of 'part'"),
        ("math.pi", "part='math.pi': expected one of 'part' .*got a float"),
        ({"a": 1}, "expected a key 'name'"),
        ({"name": 3}, "part=3: expected a word, a dict, a class or a function"),
    ],
)
def test_what_cannot_be_read(spec, message):
    with pytest.raises(ValueError, match=message):
        read_spec(spec, {"part": known}, "part")


# -- networks --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
def test_networks_by_name(name):
    shape = IMAGE if "conv" in name else VECTOR
    net = make_net(f"{name}:{'hidden=(6,)' if name == 'mlp' else 'width=6'}", shape, 2, 4, context_dim=3)
    x = torch.randn(5, 2, *shape[1:])
    assert net(x, torch.randn(5, 3)).shape == (5, 4, *shape[1:])
    assert next(p for p in net.parameters() if p.dim() in (2, 4)).shape[0] == 6


def test_a_network_of_ones_own():
    def own(inputs, outputs, context_dim=0):
        return torch.nn.Linear(inputs, outputs + context_dim)

    assert make_net(own, VECTOR, 2, 4, 3).out_features == 7


def test_convolutions_of_one_pixel_have_a_kernel_of_one():
    for name in ("conv", "residual-conv", "skip-conv", "pooled-conv"):
        net = make_net(f"{name}:width=6", torch.Size((4, 1, 3)), 2, 4)
        assert net(torch.randn(5, 2, 1, 3)).shape == (5, 4, 1, 3)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("conv", VECTOR, "net='conv': events are vectors, expected 'mlp' or 'residual-mlp'"),
        (
            "mlp",
            IMAGE,
            "net='mlp': events are images, expected 'conv' or 'residual-conv' or 'skip-conv' or "
            "'pooled-conv'",
        ),
        (
            "mlp:depth=3",
            VECTOR,
            "net='mlp:depth=3': no option 'depth', expected one of hidden, activation, dropout$",
        ),
        (
            "mlp:activation=sine",
            VECTOR,
            "activation='sine': expected 'relu', 'tanh', 'silu', 'gelu' or 'elu'",
        ),
        ("dense", VECTOR, "net='dense': expected one of 'mlp'"),
    ],
)
def test_networks_that_do_not_fit(spec, shape, message):
    with pytest.raises(ValueError, match=message):
        make_net(spec, shape, 2, 4)


def test_each_level_may_have_its_own_network():
    flow = scnf.flows.glow((1, 8, 8), levels=2, steps=1, net=["conv:width=5", {"name": "conv", "width": 7}])
    widths = [net.first.out_channels for net in flow.modules() if isinstance(net, scnf.nn.ConvNet)]
    assert sorted(widths) == [5, 5, 7, 7]
    assert [n.first.out_channels for n in flow.stages[-1].modules() if isinstance(n, scnf.nn.ConvNet)] == [
        5,
        5,
    ]
    with pytest.raises(ValueError, match="net: a list of 1 values for levels=2"):
        scnf.flows.glow((1, 8, 8), levels=2, steps=1, net=["conv"])


# -- memory ----------------------------------------------------------------------------------------
def test_parts_remember_how_they_were_named():
    flow = scnf.flows.glow((2,), steps=1, net="mlp:hidden=(4,)")
    expected = {"name": "glow", "event_shape": (2,), "steps": 1, "net": "mlp:hidden=(4,)"}
    for part in (flow, copy.deepcopy(flow), flow.double()):
        assert describe(part) == expected
    assert describe(scnf.flows.atanov2019_mnist) is None
    prior = scnf.make_prior("gmm:scale=0.5", (2,), 3)
    assert describe(prior) == {"name": "gmm", "scale": 0.5}
    assert describe(scnf.priors.GaussianMixturePrior((2,), 3)) is None


def test_what_is_not_plain_is_not_remembered():
    net = NETS["mlp"]
    assert describe(scnf.flows.glow((2,), steps=1, net=net)) is None
    inner = scnf.flows.glow((2,), steps=1, width=4, context_dim=3)
    assert describe(scnf.make_prior({"name": "flow", "flow": inner}, (2,), 3)) is None
