"""How often f_w runs, and that a shared encoding is never stale."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Counter, counting, gradient_error, gradients, image_flow, perturb, relative, toy_flow
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam

import pyro_scnf as scnf
from pyro_scnf import sharing

F64 = torch.float64


def count(flow: scnf.SemiConditionalFlow, action) -> Counter:
    """Count the passes of f_w from data to latent while ``action()`` runs."""
    with counting(flow.transform, "inverse_and_ladj") as counter:
        action()
    return counter


# -- passes -----------------------------------------------------------------------
class TestPasses:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("labels", [(3, 1), (3, 6), (6,), ()])
    def test_one_for_any_number_of_labels(self, labels):
        flow = toy_flow("flow")
        y = torch.randint(3, labels)
        counter = count(flow, lambda: flow.condition(y).log_prob(self.x))
        assert (counter.calls, counter.rows) == (1, [6])

    @pytest.mark.parametrize("what", ["class_log_prob", "log_prob", "posterior", "encode"])
    def test_one_for_each_density(self, what):
        flow = toy_flow("flow")
        assert count(flow, lambda: getattr(flow, what)(self.x)).calls == 1

    def test_one_for_several_inside_share_encoding(self):
        flow = toy_flow("flow")

        def several():
            flow.posterior(self.x)
            flow.log_prob(self.x)
            flow.condition(torch.arange(3)[:, None]).log_prob(self.x)

        assert count(flow, several).calls == 3
        with scnf.share_encoding():
            assert count(flow, several).calls == 1

    @pytest.mark.parametrize(
        ("guide", "passes"), [("exact", 1), ("em", 1), ("em-sample", 1), ("em-hard", 1), ("em-ema", 2)]
    )
    @pytest.mark.parametrize("form", ["unlabelled", "partly", "two plates"])
    @pytest.mark.parametrize("with_terms", [False, True])
    def test_of_a_training_step(self, guide, passes, form, with_terms):
        """Model, guide and terms run f_w once, whichever rows have labels. A lagged guide runs its own."""
        model = scnf.SemiSupervisedModel(toy_flow("flow"))
        guide = scnf.make_guide(guide, model)
        y = torch.tensor([0, 2, -1, -1, 1, -1])
        args = {
            "unlabelled": (self.x,),
            "partly": (self.x, y),
            "two plates": (self.x[:2], y[:2], self.x[2:]),
        }[form]
        known = () if form == "unlabelled" else ("classification",)
        loss = scnf.elbo(model, guide, ("balance", *known) if with_terms else ())
        counter = count(model.flow, lambda: loss(*args).backward())
        assert (counter.calls, counter.rows) == (1, [6])
        if passes == 2:
            unlabelled = len(args[-1]) if form == "two plates" else 6
            counter = count(guide.old.module.flow, lambda: loss(*args).backward())
            assert (counter.calls, counter.rows) == (1, [unlabelled])

    def test_labelled_rows_cost_one_evaluation_of_the_prior(self):
        """Two plates: the prior sees each labelled row once and each unlabelled one K times."""
        flow = toy_flow("flow", num_classes=5)
        model, rows = scnf.SemiSupervisedModel(flow), []
        last = next(m for m in flow.prior.modules() if isinstance(m, scnf.nn.Conditioner)).last
        hook = last.register_forward_hook(lambda module, args, out: rows.append(len(out)))
        scnf.elbo(model)(self.x[:2], torch.tensor([0, 1]), self.x[2:])
        hook.remove()
        assert sorted(rows) == [2, 4 * 5]

    def test_under_plain_svi(self):
        flow = toy_flow()
        svi = SVI(
            scnf.SemiSupervisedModel(flow),
            scnf.exact_guide,
            Adam({"lr": 1e-3}),
            TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
        )
        assert count(flow, lambda: svi.step(self.x)).calls == 1

    def test_vectorised_particles_share_a_pass(self):
        flow = toy_flow("flow")
        model = scnf.SemiSupervisedModel(flow)
        loss = TraceEnum_ELBO(
            num_particles=3, vectorize_particles=True, max_plate_nesting=1, strict_enumeration_warning=False
        )
        with scnf.share_encoding():
            counter = count(flow, lambda: loss.loss(model, scnf.exact_guide, self.x))
        assert counter.calls == 1


# -- never stale --------------------------------------------------------------------
class TestNeverStale:
    def test_after_a_change_of_the_data_in_place(self):
        flow, x = toy_flow(), torch.randn(4, 2)
        with scnf.share_encoding():
            before = flow.encode(x)[1]
            x.add_(1)
            after = flow.encode(x)[1]
        assert not torch.equal(before, after)
        assert torch.equal(after, flow.encode(x)[1])

    def test_after_an_optimiser_step(self):
        flow, x = toy_flow(), torch.randn(4, 2)
        optimiser = torch.optim.Adam(flow.parameters(), 0.1)
        with scnf.share_encoding():
            before = flow.log_prob(x)
            (-before.sum()).backward()
            optimiser.step()
            after = flow.log_prob(x)
        assert torch.equal(after, flow.log_prob(x))
        assert not torch.equal(after, before)

    @pytest.mark.parametrize("change", ["through .data", "through a NumPy view", "through a view"])
    @pytest.mark.parametrize("grad", [True, False])
    def test_after_a_write_to_the_data_that_pytorch_does_not_count(self, change, grad):
        flow, array = toy_flow(), np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
        x = torch.from_numpy(array)
        with torch.set_grad_enabled(grad), scnf.share_encoding():
            before, version = flow.encode(x)[1], x._version
            if change == "through .data":
                x.data.add_(1)
            elif change == "through a NumPy view":
                array[2] += 1
            else:
                x.detach()[0].data[1] = 7
            assert x._version == version
            after = flow.encode(x)[1]
            assert torch.equal(after, flow.encode(x)[1])
        assert not torch.equal(before, after)
        assert torch.equal(after, flow.encode(x)[1])

    @pytest.mark.parametrize("part", ["transform", "prior"])
    @pytest.mark.parametrize("frozen", [True, False])
    def test_after_a_write_to_a_parameter_that_pytorch_does_not_count(self, part, frozen):
        """Every single parameter and buffer counts. Class tables depend on those of the prior too."""
        flow, x = toy_flow("flow").requires_grad_(not frozen), torch.randn(4, 2)
        with scnf.share_encoding():
            model, module = scnf.SemiSupervisedModel(flow), getattr(flow, part)
            for name, value in [*module.named_parameters(), *module.named_buffers()]:
                before = model.posterior(x).logits, flow.log_prob(x)
                version = value._version
                value.data.mul_(1.25).add_(0.3)
                assert value._version == version
                after = model.posterior(x).logits, flow.log_prob(x)
                fresh = copy.deepcopy(flow)
                assert torch.equal(after[1], fresh.log_prob(x.clone())), name
                assert torch.equal(after[0], fresh.posterior(x.clone()).logits), name
                assert value.numel() == 0 or not torch.equal(after[1], before[1]), name

    @pytest.mark.parametrize("what", ["parameters", "data"])
    def test_after_gradients_were_switched_on_or_off(self, what):
        flow, x = toy_flow(dtype=F64).requires_grad_(False), torch.randn(4, 2, dtype=F64)
        owner = flow if what == "parameters" else x
        with scnf.share_encoding():
            assert not flow.log_prob(x).requires_grad
            owner.requires_grad_(True)
            loss = flow.log_prob(x).sum()
            leaves = list(flow.parameters()) if what == "parameters" else [x]
            shared = torch.autograd.grad(loss, leaves, allow_unused=True)
            owner.requires_grad_(False)
            assert not flow.log_prob(x).requires_grad
        owner.requires_grad_(True)
        plain = torch.autograd.grad(flow.log_prob(x).sum(), leaves, allow_unused=True)
        assert [g is None for g in shared] == [g is None for g in plain]
        assert max(relative(a, b) for a, b in zip(shared, plain, strict=True) if b is not None) < 1e-12

    def test_training_and_evaluation_mode_are_kept_apart(self):
        flow, x = toy_flow(), torch.randn(4, 2)
        with scnf.share_encoding():
            flow.encode(x)
            assert count(flow, lambda: flow.eval().encode(x)).calls == 1

    @pytest.mark.parametrize("change", ["load_state_dict", "double", "buffer", "data"])
    def test_after_other_changes_of_the_module(self, change):
        flow, x = toy_flow(dtype=F64).float(), torch.randn(4, 2)
        other = perturb(toy_flow())
        with scnf.share_encoding():
            before = flow.encode(x)[1]
            if change == "load_state_dict":
                flow.load_state_dict(other.state_dict())
            elif change == "double":
                flow.double()
                x = x.double()
            elif change == "buffer":
                conv = next(m for m in flow.modules() if isinstance(m, scnf.transforms.InvertibleConv1x1))
                conv.diagonal_sign.neg_()
            else:
                for parameter in flow.parameters():
                    parameter.data = parameter.data + 0.5
            after = flow.encode(x)[1]
        assert after.dtype == x.dtype
        assert torch.equal(after, flow.encode(x)[1])
        assert not torch.equal(after, before)

    def test_a_value_without_gradient_is_not_given_to_one_who_needs_it(self):
        flow, x = toy_flow("flow", dtype=F64), torch.randn(4, 2, dtype=F64)
        expected = gradients(flow, flow.log_prob(x).sum())
        with scnf.share_encoding():
            with torch.no_grad():
                assert not flow.encode(x)[1].requires_grad
            assert gradient_error(gradients(flow, flow.log_prob(x).sum()), expected) < 1e-12

    def test_precision_modes_are_kept_apart(self):
        flow, x = image_flow(width=16), torch.randn(8, 1, 4, 4)
        with scnf.share_encoding():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = flow.encode(x)[1]
            full = flow.encode(x)[1]
        assert torch.equal(full, flow.encode(x)[1])
        assert not torch.equal(low, full)

    def test_inference_mode(self):
        flow = toy_flow()
        with torch.inference_mode(), scnf.share_encoding():
            x = torch.randn(4, 2)
            before = flow.encode(x)[1].clone()
            x.add_(1)
            assert not torch.equal(flow.encode(x)[1], before)
        normal = torch.randn(4, 2)
        with scnf.share_encoding():
            with torch.inference_mode():
                flow.encode(normal)
            assert flow.log_prob(normal).requires_grad

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("what", ["z", "z_f", "ladj", "class_table", "common_log_prob"])
    def test_after_a_change_of_a_shared_value_in_place(self, what, mode):
        flow, x = toy_flow("flow").requires_grad_(False), torch.randn(4, 2)
        expected = flow.log_prob(x), flow.class_table(x)
        read = {
            "z": lambda: flow.encode_flat(x)[0],
            "z_f": lambda: flow.encode(x)[1][:2],
            "ladj": lambda: flow.encode(x)[2],
            "class_table": lambda: flow.class_table(x),
            "common_log_prob": lambda: flow.common_log_prob(x),
        }[what]
        with mode(), scnf.share_encoding():
            for _ in range(3):  # the value of the one who computed it, and those of others
                read().detach().mul_(3.0)
                assert torch.equal(flow.log_prob(x), expected[0])
                assert torch.equal(flow.class_table(x), expected[1])
            assert count(flow, lambda: flow.log_prob(x)).calls == 0

    def test_other_tensors_of_equal_value_or_reused_address(self):
        flow = toy_flow()
        with scnf.share_encoding():
            for _ in range(5):
                x = torch.randn(4, 2)
                with torch.no_grad():
                    inside = flow.encode(x)[1]
                assert relative(flow.decode(inside), x) < 1e-4
                del x
                gc.collect()

    def test_two_flows_do_not_mix(self):
        one, other, x = toy_flow(), perturb(toy_flow()), torch.randn(4, 2)
        with scnf.share_encoding():
            assert not torch.equal(one.encode(x)[1], other.encode(x)[1])
            assert torch.equal(one.encode(x)[1], one.encode(x.clone())[1])

    def test_nothing_outlives_the_block(self):
        flow, x = toy_flow(), torch.randn(4, 2)
        with scnf.share_encoding():
            flow.encode(x)
        assert count(flow, lambda: flow.encode(x)).calls == 1

        def fails():
            with scnf.share_encoding():
                flow.encode(x)
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fails()
        assert count(flow, lambda: flow.encode(x)).calls == 1

    def test_a_block_inside_a_block_shares_the_outer_one(self):
        flow, x = toy_flow(), torch.randn(4, 2)
        with scnf.share_encoding():
            with scnf.share_encoding():
                flow.encode(x)
            assert count(flow, lambda: flow.encode(x)).calls == 0

    def test_threads_have_blocks_of_their_own(self):
        flow, x, calls = toy_flow(), torch.randn(4, 2), []
        with scnf.share_encoding():
            flow.encode(x)
            thread = threading.Thread(target=lambda: calls.append(count(flow, lambda: flow.encode(x)).calls))
            thread.start()
            thread.join()
        assert calls == [1]

    def test_training_over_several_steps_inside_one_block(self):
        """A training loop ends with the same loss inside one block as outside."""
        losses = []
        for shared in (False, True):
            torch.manual_seed(0)
            flow, x = toy_flow("flow", dtype=F64), torch.randn(8, 2, dtype=F64)
            optimiser = torch.optim.Adam(flow.parameters(), 0.05)
            scope = scnf.share_encoding() if shared else torch.enable_grad()
            with scope:
                for _ in range(5):
                    optimiser.zero_grad()
                    loss = scnf.elbo(scnf.SemiSupervisedModel(flow))(x)
                    loss.backward()
                    optimiser.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# -- what a block holds -------------------------------------------------------------
class TestBounds:
    @pytest.mark.parametrize("needs_grad", [True, False])
    @pytest.mark.parametrize("frozen", [True, False])
    def test_a_block_holds_so_many_values_at_most(self, needs_grad, frozen):
        flow = toy_flow().requires_grad_(not frozen)
        limit = sharing.PLAIN_LIMIT if frozen and not needs_grad else sharing.LIMIT
        rows = [torch.randn(3, 2, requires_grad=needs_grad) for _ in range(limit + 9)]
        with scnf.share_encoding():
            with counting(flow.transform, "inverse_and_ladj") as passes:
                for x in rows:
                    flow.encode(x)
                    flow.encode(rows[0])  # it is used all the time, and stays
                    assert len(sharing.current().entries) <= limit
            assert passes.calls == len(rows)
            assert len(sharing.current().entries) == limit
            assert count(flow, lambda: [flow.encode(x) for x in (rows[0], rows[-1])]).calls == 0
            assert count(flow, lambda: flow.encode(rows[1])).calls == 1

    def test_data_that_need_gradients_do_not_pile_up(self):
        """The graph of their encoding holds them, so a block keeps the latest ones until others come."""
        flow, alive = toy_flow(), weakref.WeakSet()
        with scnf.share_encoding():
            for _ in range(2 * sharing.LIMIT):
                x = torch.randn(3, 2, requires_grad=True)
                alive.add(x)
                flow.encode(x)
            del x
            gc.collect()
            assert len(alive) <= sharing.LIMIT
        gc.collect()
        assert len(alive) == 0

    @pytest.mark.parametrize("frozen", [True, False])
    def test_values_go_with_their_data(self, frozen):
        flow = toy_flow().requires_grad_(not frozen)
        with scnf.share_encoding():
            for _ in range(3):
                x = torch.randn(3, 2)
                flow.log_prob(x)
                flow.class_table(x)
                kept = [weakref.ref(value) for e in sharing.current().entries.values() for value in e.value]
                assert len(sharing.current().entries) == (2 if frozen else 1)  # encoding and class table
                del x
                gc.collect()
                assert len(sharing.current().entries) == 0
                assert [ref() for ref in kept] == [None] * len(kept)


# -- inside torch.func --------------------------------------------------------------
def test_a_step_of_svi_leaves_no_graph_behind():
    """Without the garbage collector, too. The same labelled tensor comes in every step."""
    model = scnf.SemiSupervisedModel(toy_flow())
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    svi = SVI(model, scnf.exact_guide, Adam({"lr": 1e-4}), TraceEnum_ELBO(max_plate_nesting=1))

    def alive():
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    svi.step(x, y, torch.randn(5, 2))
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(3):
            svi.step(x, y, torch.randn(5, 2))
        assert alive() == before
    finally:
        gc.enable()


class TestFunctionTransforms:
    """Tensors inside ``torch.func`` have no address, so nothing is kept for them."""

    @pytest.fixture(autouse=True)
    def no_validation(self):
        pyro.enable_validation(False)  # ``vmap`` allows no check that reads values

    @pytest.mark.parametrize("what", ["log_prob", "class_table", "common_log_prob"])
    def test_vmap_over_batches(self, what):
        flow, x = toy_flow("flow", dtype=F64), torch.randn(3, 4, 2, dtype=F64)
        function = getattr(flow, what)
        with scnf.share_encoding():
            found = torch.func.vmap(lambda rows: function(rows) + function(rows))(x)
            assert len(sharing.current().entries) == 0
        assert relative(found, 2 * function(x)) < 1e-12

    def test_forward_mode(self):
        flow, x = toy_flow("flow", dtype=F64), torch.randn(4, 2, dtype=F64)
        direction = torch.randn_like(x)
        with scnf.share_encoding():
            flow.log_prob(x)
            _, found = torch.func.jvp(flow.log_prob, (x,), (direction,))
        leaf = x.clone().requires_grad_()
        slope = torch.autograd.grad(flow.log_prob(leaf).sum(), leaf)[0]
        assert relative(found, (slope * direction).sum(-1)) < 1e-10

    def test_gradients_of_single_rows(self):
        flow, x = toy_flow("flow", dtype=F64), torch.randn(4, 2, dtype=F64)

        def one(row):
            return flow.log_prob(row) + flow.log_prob(row)

        with scnf.share_encoding():
            found = torch.func.vmap(torch.func.grad(one))(x)
            assert len(sharing.current().entries) == 0
        leaf = x.clone().requires_grad_()
        assert relative(found, torch.autograd.grad(2 * flow.log_prob(leaf).sum(), leaf)[0]) < 1e-10

    def test_gradients_by_parameters_that_are_replaced(self):
        flow, x = toy_flow("flow", dtype=F64), torch.randn(4, 2, dtype=F64)
        parameters = {name: p.detach() + 0.1 for name, p in flow.named_parameters()}

        class LogProb(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.flow = flow

            def forward(self, x):
                return self.flow.log_prob(x).sum() + self.flow.class_table(x).sum()

        def loss(values):
            return torch.func.functional_call(LogProb(), {f"flow.{n}": v for n, v in values.items()}, (x,))

        with scnf.share_encoding():
            flow.log_prob(x)  # an entry for the parameters that are not replaced
            found, value = torch.func.grad_and_value(loss)(parameters)
        with torch.no_grad():
            for name, p in flow.named_parameters():
                p.copy_(parameters[name])
        expected = LogProb()(x)
        assert relative(value, expected) < 1e-12
        plain = torch.autograd.grad(expected, list(flow.parameters()))
        assert max(relative(a, b) for a, b in zip(found.values(), plain, strict=True)) < 1e-10


def test_encoding_together_gives_the_same_as_apart():
    flow = image_flow("flow", dtype=F64)
    x, other = torch.randn(3, 1, 4, 4, dtype=F64), torch.randn(5, 1, 4, 4, dtype=F64)
    with scnf.share_encoding():
        counter = count(flow, lambda: flow.encode_together(x, other))
        assert (counter.calls, counter.rows) == (1, [8])
        assert count(flow, lambda: flow.log_prob(x) + 0 * flow.log_prob(other).sum()).calls == 0
        both = [flow.log_prob(x), flow.log_prob(other)]
        grads = gradients(flow, both[0].sum() + 2 * both[1].sum())
    assert relative(both[0], flow.log_prob(x)) < 1e-12
    assert relative(both[1], flow.log_prob(other)) < 1e-12
    assert (
        gradient_error(grads, gradients(flow, flow.log_prob(x).sum() + 2 * flow.log_prob(other).sum()))
        < 1e-12
    )
    counter = count(flow, lambda: flow.encode_together(x, other))
    assert counter.calls == 0  # outside a block there is nothing to fill


def test_a_users_own_model_and_guide_share_under_elbo():
    """``elbo`` opens a block by itself, for any model with a label site."""
    flow, x = toy_flow("flow"), torch.randn(5, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)))
            pyro.sample("x", flow.condition(y), obs=x)

    def guide(x):
        logits = flow.posterior(x).logits.detach()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    counter = count(flow, lambda: scnf.elbo(model, guide)(x).backward())
    assert counter.calls == 1


# -- inside one evaluation of a loss ------------------------------------------------
def test_replaced_parameters_inside_an_evaluation():
    flow, x, found = toy_flow("gmm"), torch.randn(4, 2), {}
    holder = torch.nn.Module()
    holder.flow, holder.forward = flow, lambda x: flow.log_prob(x)
    other = {f"flow.{name}": p.detach() + 0.3 for name, p in flow.named_parameters()}
    expected = torch.func.functional_call(holder, other, (x,))

    def model(x):
        flow.log_prob(x)
        found["value"] = torch.func.functional_call(holder, other, (x,))
        pyro.factor("f", flow.log_prob(x).sum())

    scnf.elbo(model)(x)
    assert relative(found["value"], expected) < 1e-6


def test_evaluation_mode_inside_an_evaluation():
    class Drop(scnf.transforms.ActNorm):
        def inverse_and_ladj(self, x):
            z, ladj = super().inverse_and_ladj(x)
            return (2 * z if self.training else z), ladj

    flow, x, found = scnf.SemiConditionalFlow(Drop((2,)), "gmm", 3), torch.randn(4, 2), {}

    def guide(x):
        flow.eval()
        flow.posterior(x)
        flow.train()

    def model(x):
        found["value"] = flow.encode(x)[1]
        pyro.factor("f", flow.log_prob(x).sum())

    scnf.elbo(model, guide)(x)
    assert torch.equal(found["value"], flow.encode(x)[1])


@pytest.mark.parametrize(
    "make", [lambda: scnf.flows.glow((2,), width=6), lambda: scnf.transforms.InvertibleConv1x1((2,))]
)
def test_values_go_with_their_data_also_if_the_first_layer_saves_its_input(make):
    flow = scnf.SemiConditionalFlow(make(), "gmm", 3)
    with scnf.share_encoding():
        x = torch.randn(3, 2)
        flow.log_prob(x)
        del x
        gc.collect()
        assert len(sharing.current().entries) == 0


def test_parameters_that_take_the_place_of_freed_ones():
    flow, x = toy_flow("gmm"), torch.randn(4, 2)
    with torch.no_grad(), sharing.evaluation():
        for _ in range(20):
            flow.prior.loc = torch.nn.Parameter(torch.randn(3, 2))
            inside = flow.log_prob(x)
            assert torch.equal(inside, flow.log_prob(x.clone()))


@pytest.mark.parametrize("shape", [(), (4,), (3,), (3, 1), (3, 1, 1), (2, 4), (3, 2, 4), (2, 1)], ids=str)
@pytest.mark.parametrize("batch", [(), (4,), (2, 4), (3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_labels_of_every_shape_pick_from_a_table(shape, batch, dtype):
    try:
        out = torch.broadcast_shapes(shape, batch)
    except RuntimeError:
        pytest.skip("shapes that do not broadcast")
    flow, x = image_flow("flow", dtype=F64), torch.randn(*batch, 1, 4, 4, dtype=F64)
    y = torch.randint(3, shape).to(dtype)
    expected = flow.condition(y).log_prob(x)
    with torch.no_grad():
        for known in (False, True):
            with scnf.share_encoding():
                if known:
                    flow.class_log_prob(x)
                d = flow.condition(y)
                for value in (d.log_prob(x), d.expand(out).log_prob(x)):
                    assert value.shape == expected.shape
                    assert relative(value, expected) < 1e-12


class MovingPrior(scnf.priors.ClassConditionalPrior):
    """Its means are what a user puts there: an attribute that is no parameter, or one of Pyro's store."""

    def __init__(self, event_shape, num_classes, stored=False):
        super().__init__(event_shape, num_classes)
        self.means, self.stored = torch.zeros(num_classes, *event_shape), stored

    def condition(self, y, temperature=1.0):
        means = pyro.param("means", lambda: self.means) if self.stored else self.means
        return dist.Normal(means[y], temperature).to_event(1)


@pytest.mark.parametrize("stored", [False, True])
def test_a_prior_whose_state_is_nowhere_registered(stored):
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), width=6), MovingPrior((2,), 3, stored), 3)
    flow.requires_grad_(False)
    x, labels = torch.randn(4, 2), torch.arange(3)[:, None]
    with torch.no_grad(), scnf.share_encoding():
        for _ in range(5):
            means = torch.randn(3, 2)
            if stored:
                pyro.get_param_store()["means"] = means
            flow.prior.means = means
            inside = flow.condition(labels).log_prob(x), flow.log_prob(x)
            outside = flow.condition(labels).log_prob(x.clone()), flow.log_prob(x.clone())
            assert torch.equal(inside[0], outside[0])
            assert torch.equal(inside[1], outside[1])


def test_a_distribution_scores_with_the_prior_for_which_it_was_made():
    flow = toy_flow("flowgmm")  # its means are buffers
    x, labels = torch.randn(4, 2), torch.arange(3)[:, None]
    with torch.no_grad(), scnf.share_encoding():
        made, expected = [], []
        for _ in range(3):
            flow.prior.loc = torch.randn(3, 2)
            made.append(flow.condition(labels))
            expected.append(flow.condition(labels).log_prob(x.clone()))
        for d, value in zip(made, expected, strict=True):
            assert relative(d.log_prob(x), value) < 1e-5


def test_temperatures_have_no_table():
    flow, x = toy_flow("flow"), torch.randn(4, 2)
    for y in (torch.arange(3)[:, None], torch.tensor([0, 2, 1, 1])):
        expected = flow.condition(y, 0.5).log_prob(x)
        with torch.no_grad(), scnf.share_encoding():
            flow.class_log_prob(x)
            assert relative(flow.condition(y, 0.5).log_prob(x), expected) < 1e-5


def test_a_guide_of_ones_own_that_writes_to_parameters_is_noticed():
    """An averaged teacher is often swapped in by ``param.data.copy_``, which PyTorch does not count."""
    flow, x = toy_flow("gmm"), torch.randn(5, 2)
    teacher = [p.detach() + 0.3 for p in flow.parameters()]

    def swap():
        for i, p in enumerate(flow.parameters()):
            mine = p.detach().clone()
            p.data.copy_(teacher[i])
            teacher[i] = mine

    def guide(x):
        swap()
        logits = flow.posterior(x).logits.detach()
        swap()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    model = scnf.SemiSupervisedModel(flow)
    pyros = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    expected = pyros.differentiable_loss(model, guide, x)
    assert relative(scnf.elbo(model, guide)(x), expected) < 1e-5


def solvers():
    f_w = scnf.flows.ffjord((2,), hidden=(6,), solver="euler:steps=2")
    layer = next(m for m in f_w.modules() if isinstance(m, scnf.transforms.ContinuousFlow))
    return f_w, layer, "solver", scnf.transforms.Solver("euler", steps=3)


def divergences():
    f_w, layer, _, _ = solvers()
    return f_w, layer, "divergence", "rademacher"


def activations():
    f_w, layer, _, _ = solvers()
    return f_w, layer.net, "activation", "softplus"


def clamps():
    f_w = scnf.flows.glow((2,), steps=1, width=6, scale="clamp")
    return (
        f_w,
        next(m for m in f_w.modules() if isinstance(m, scnf.transforms.scale.ClampScale)),
        "bound",
        0.01,
    )


def logits():
    layer = scnf.transforms.Logit((2,))
    return layer, layer, "alpha", 0.2


def layers_without_parameters():
    f_w = scnf.flows.glow((2,), steps=1, width=6)
    coupling = next(m for m in f_w.modules() if hasattr(m, "scale"))
    return f_w, coupling, "scale", torch.nn.Identity()


@pytest.mark.parametrize(
    "make", [solvers, divergences, activations, clamps, logits, layers_without_parameters]
)
def test_other_settings_of_a_layer_are_noticed(make):
    """A solver of small tolerance, for example, to check a result."""
    f_w, owner, name, new = make()
    flow, x = perturb(scnf.SemiConditionalFlow(f_w, "gmm", 3)), 0.2 + 0.6 * torch.rand(4, 2)
    with torch.no_grad(), scnf.share_encoding():
        torch.manual_seed(0)
        before = flow.log_prob(x)
        setattr(owner, name, new)
        torch.manual_seed(0)
        after = flow.log_prob(x)
        torch.manual_seed(0)
        assert torch.equal(after, flow.log_prob(x.clone()))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("enumerated", [True, False])
def test_labels_that_change_after_condition(enumerated):
    """The distribution keeps the labels with which it was made, inside a block and outside."""
    flow, x = toy_flow("gmm"), torch.randn(3, 2)
    for block in (scnf.share_encoding, nullcontext):
        y = torch.arange(3)[:, None] if enumerated else torch.arange(3)
        with torch.no_grad(), block():
            flow.class_table(x)
            made = flow.condition(y)
            expected = made.log_prob(x)
            y.zero_()
            assert torch.equal(made.log_prob(x), expected)


def test_strided_data_and_parameters_are_compared():
    flow = toy_flow("gmm")
    for x in (torch.randn(2, 4).t(), torch.randn(4, 4)[:, ::2]):
        with torch.no_grad(), scnf.share_encoding():
            flow.log_prob(x)
            x.data.mul_(2)
            assert torch.equal(flow.log_prob(x), flow.log_prob(x.clone()))
            weight = next(p for p in flow.parameters() if p.dim() == 2)
            weight.data = weight.data.t().contiguous().t()
            flow.log_prob(x)
            weight.data.add_(0.5)
            assert torch.equal(flow.log_prob(x), flow.log_prob(x.clone()))


def test_a_value_with_a_graph_has_none_without_gradients():
    flow, x = toy_flow("gmm"), torch.randn(4, 2)
    with scnf.share_encoding():
        assert flow.encode(x)[1].requires_grad
        with torch.no_grad():
            assert not flow.encode(x)[1].requires_grad
