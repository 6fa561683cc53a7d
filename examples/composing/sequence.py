"""Which class comes next? A hidden Markov chain over labels, with a flow as its emissions.

Points come in sequences, and none has a label. The label of a point depends on that of the point before.
NUTS samples the transition matrix and the probabilities of the first label, while Pyro sums over all paths of
labels. Afterwards each label has a probability given its whole sequence (smoothing). The wrong model guesses
each label from its own point alone, and counts the transitions between guesses.

    python examples/composing/sequence.py --out out/sequence

The flow scores all points in one call. Within ``share_encoding`` it therefore runs once for all of NUTS; with
``flow.condition(y)`` and ``x[:, t]`` at each step, it would run T times for each gradient. For hundreds of
steps, ``dist.DiscreteHMM`` sums over the paths in fewer operations.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from composed import K, nuts, parse, petals, train
from estimates import error_pct, estimate, finish
from pyro.ops.indexing import Vindex
from torch import Tensor

import pyro_scnf as scnf

SEQUENCES, STEPS, FIRST = 40, 15, torch.tensor([0.6, 0.3, 0.1])
TRANSITION = torch.tensor([[0.80, 0.15, 0.05], [0.05, 0.75, 0.20], [0.30, 0.05, 0.65]])
"""Entry i, j: how often label j follows label i."""


def make_model(flow: scnf.SemiConditionalFlow) -> Callable[..., None]:
    """A model of sequences ``(N, T, 2)`` with the label ``y_t`` at each step."""

    def model(x: Tensor) -> None:
        flat = torch.ones(K)
        first = pyro.sample("first", dist.Dirichlet(flat))
        transition = pyro.sample("transition", dist.Dirichlet(flat).expand([K]).to_event(1))
        scores = flow.class_log_prob(x)
        with pyro.plate("sequences", len(x)) as row:
            probs = first
            for t in pyro.markov(range(x.shape[1])):
                y = pyro.sample(f"y_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.factor(f"x_{t}", scores[row, t, y])
                probs = Vindex(transition)[..., y, :]

    return model


def smooth(model: Callable[..., None], x: Tensor, draws: dict[str, Tensor]) -> Tensor:
    r""":math:`p(y_t \mid x_1, \dots, x_T)`, averaged over the draws, ``(N, T, K)``."""
    steps = [scnf.enumerate_labels(model, (x,), draws, site=f"y_{t}") for t in range(x.shape[1])]
    return torch.stack([step.softmax(-1).mean(0) for step in steps], 1)


def rows(transition: Tensor) -> dict[str, dict[str, list[float]]]:
    """An estimate of each row of the transition matrix, from draws ``(S, K, K)``."""
    return {f"after {k}": estimate(transition[:, k], TRANSITION[k]) for k in range(K)}


def simulate() -> Tensor:
    """Labels ``(N, T)`` of the true chain."""
    steps = [dist.Categorical(FIRST).sample((SEQUENCES,))]
    while len(steps) < STEPS:
        steps.append(dist.Categorical(TRANSITION[steps[-1]]).sample())
    return torch.stack(steps, 1)


def main() -> dict[str, object]:
    args = parse(__doc__.splitlines()[0], "sequence")
    flow, y = train(args), simulate()
    x, model = petals(y), make_model(flow)
    draws = nuts(args, model, x)
    alone = flow.posterior(x).probs.argmax(-1)
    pairs = alone[:, :-1] * K + alone[:, 1:]
    counts = pairs.flatten().bincount(minlength=K * K).reshape(K, K)
    counted = dist.Dirichlet(1.0 + counts).sample((1000,))
    guesses = {"error_pct": smooth(model, x, draws).argmax(-1), "error_pct_without_the_chain": alone}
    return finish(
        args,
        {"first": estimate(draws["first"], FIRST), **rows(draws["transition"])},
        wrong=rows(counted),
        **{name: error_pct(guess, y) for name, guess in guesses.items()},
    )


if __name__ == "__main__":
    main()
