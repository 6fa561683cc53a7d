"""A hundred labelled handwritten digits: one exact model that classifies and draws them.

Trains a semi-conditional flow on the 8×8 digits that scikit-learn ships. Ten digits of each class are
labelled. Prints its test error beside that of standard methods on the same split. Writes ``metrics.json``,
``model.pt``, checkpoints and figures to ``--out``:

    python examples/digits.py --prior flow --guide exact --seed 0 --out out/digits
"""

from __future__ import annotations

import common
import figures
import torch
from command_line import parse, refusing, whole
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

import pyro_scnf as scnf
from pyro_scnf import analysis
from pyro_scnf.datasets import SemiSupervisedData, digits

PRESET = scnf.presets.DIGITS


def baselines(data: SemiSupervisedData) -> dict[str, float]:
    """Test errors of standard methods in per cent. They use the held-out digits as unlabelled ones."""
    assert data.x_val is not None
    x = torch.cat([data.x, data.x_val]).flatten(1).numpy()
    y = torch.cat([data.y, torch.full((len(data.x_val),), scnf.UNLABELLED)]).numpy()
    known = y != scnf.UNLABELLED
    supervised = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "1-nearest neighbour": KNeighborsClassifier(1),
    }
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    semi_supervised = {
        "self-training": SelfTrainingClassifier(logistic),
        "LabelSpreading (rbf)": LabelSpreading(kernel="rbf", gamma=0.01),
        "LabelSpreading (kNN)": LabelSpreading(kernel="knn", n_neighbors=7),
    }
    fitted = {name: method.fit(x[known], y[known]) for name, method in supervised.items()}
    fitted |= {name: method.fit(x, y) for name, method in semi_supervised.items()}
    test = data.x_test.flatten(1).numpy(), data.y_test.numpy()
    return {name: 100 * (1 - method.score(*test)) for name, method in fitted.items()}


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--labels-per-class", type=whole(), default=10)
    args = parse(parser, "digits")
    torch.manual_seed(args.seed)

    with refusing(args, "labels_per_class"):
        data = digits(labels_per_class=args.labels_per_class, seed=args.seed)
        data = data.hold_out(PRESET.held_out, args.seed)
    with refusing(args, "prior"):
        model = PRESET.make_model(data, args.prior).to(args.device)
    machine = scnf.training.Machine(device=args.device)
    result = common.train(args, PRESET, model, data, smoke_steps=10, machine=machine)

    bins = PRESET.augment.bins
    scores = analysis.evaluate(model, data.x_test, data.y_test, bins=bins, draws=PRESET.draws)
    others = baselines(data)
    training = {"val_nll": result.best_nll, "best_step": result.best_step, "seconds": result.seconds_in_all}
    metrics: dict[str, object] = {**scores, **training, "baselines_error_pct": others}
    x, y = data.test_examples()
    figures.draw_samples(args, model.flow)
    figures.draw_swaps(args, model.flow, PRESET.augment.prepare(x), y)
    common.save(args, model, metrics)

    print(f"\ntest error on {len(data.x_test)} digits, {len(data.labelled[0])} labels, seed {args.seed}")
    for name, error in {"pyro-scnf": scores["test_error_pct"], **others}.items():
        print(f"  {name:22s} {error:5.1f} %")
    print(
        f"{scores['test_bits_per_dim']:.3f} bits/dim, calibration error {scores['test_ece']:.3f}, "
        f"{result.seconds:.0f} s; written to {args.out}"
    )
    return metrics


if __name__ == "__main__":
    main()
