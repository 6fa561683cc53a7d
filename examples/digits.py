"""A hundred labelled handwritten digits: one exact model that classifies and draws them.

Trains a semi-conditional flow on the 8×8 digits that scikit-learn ships. Ten digits of each class are
labelled. Prints its test error beside that of standard methods on the same split. Writes ``metrics.json``,
``model.pt``, checkpoints and figures to ``--out``:

    python examples/digits.py --prior flow --guide exact --seed 0 --out out/digits
"""

from __future__ import annotations

import common
import evidence
import figures
import numpy as np
import torch
from command_line import parse, refusing, whole
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

import pyro_scnf as scnf
from pyro_scnf.datasets import SemiSupervisedData, digits


def baselines(data: SemiSupervisedData) -> dict[str, dict[str, float]]:
    """Test errors of standard methods in per cent, and their label NLL in nats.

    Label spreading has no verdict on a row that no label reaches. Its NLL there is that of a uniform guess.
    """
    x, y = data.x.flatten(1).numpy(), data.y.numpy()
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
    x, y = data.x_test.flatten(1).numpy(), data.y_test.numpy()
    uniform = 1 / data.num_classes  # in place of scikit-learn's NaN
    probs = {name: np.nan_to_num(method.predict_proba(x), nan=uniform) for name, method in fitted.items()}
    return {
        "baselines_error_pct": {name: 100 * (1 - method.score(x, y)) for name, method in fitted.items()},
        "baselines_label_nll": {name: log_loss(y, guess) for name, guess in probs.items()},
    }


def main() -> dict[str, object]:
    parser = common.parser(__doc__.splitlines()[0])
    evidence.add_graph(parser)
    parser.add_argument("--labels-per-class", type=whole(), default=10)
    args = parse(parser, "digits")
    preset = evidence.with_graph(args, scnf.presets.DIGITS)
    torch.manual_seed(args.seed)
    with refusing(args, "labels_per_class"):
        data = digits(labels_per_class=args.labels_per_class, seed=args.seed)
    data, about = evidence.with_evidence(args, preset, data)
    with refusing(args, "prior"):
        model = preset.make_model(data, args.prior).to(args.device)
    machine = scnf.training.Machine(device=args.device)
    result = common.train(args, preset, model, data, smoke_steps=10, machine=machine)

    scores = evidence.evaluate(preset, model, data.x_test, data.y_test, about)
    metrics = {**scores, "seconds": result.seconds_in_all}
    common.save(args, model, metrics)
    others = baselines(data)
    x, y = data.test_examples()
    figures.draw_samples(args, model.flow)
    figures.draw_swaps(args, model.flow, preset.augment.prepare(x), y)
    common.save(args, model, {**metrics, **others})

    print(f"\n{len(data.x_test)} test digits, {len(data.labelled[0])} labels, seed {args.seed}")
    evidence.report(metrics)
    for name, error in others["baselines_error_pct"].items():
        print(f"{name:20}{error:10.2f} %{others['baselines_label_nll'][name]:12.3f}")
    print(f"{result.seconds:.0f} s; written to {args.out}")
    return {**metrics, **others}


if __name__ == "__main__":
    main()
