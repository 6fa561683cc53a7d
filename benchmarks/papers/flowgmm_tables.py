"""The lines of the tables of FlowGMM (Izmailov et al., 2020): what is run for each, and what the paper has.

All lines on MNIST use the light preset ``flowgmm-mnist-cpu`` on one thread. The number of steps differs, so
that lines with a second view, or with all labels, take about as many minutes as the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.papers.flowgmm_comparisons import RATES, Comparison, Flow
from benchmarks.papers.flowgmm_runs import Baseline, Coverage, Distances, Mnist, Run, Toy
from pyro_scnf.baselines import COMPARATORS
from pyro_scnf.datasets import ImageAugment

__all__ = ["BASES", "TABLES", "Row", "base_of", "row"]


@dataclass(frozen=True)
class Row:
    """A line of a table.

    :ivar run: what makes our figures.
    :ivar figures: the figures to show, and the names that they have in the metrics of the run.
    :ivar paper: what the paper reports of this line.
    """

    name: str
    run: Run
    figures: Mapping[str, str]
    paper: Mapping[str, str]


def row(name: str, run: Run, figures: str | Mapping[str, str], **paper: str) -> Row:
    """A line whose figures are named in a string, or mapped to the names in the metrics."""
    return Row(name, run, {f: f for f in figures.split()} if isinstance(figures, str) else figures, paper)


# Trainings take about three minutes on one thread: all rows, all rows and a second view, labelled rows alone.
STEPS, TWO_VIEWS, LABELLED_ONLY = 850, 620, 700
PROBABILITIES = "consistency:kind=probabilities,weight=300000,start=0"
LIKELIHOOD = "consistency:kind=likelihood,weight=1,start=0"
CONS = Mnist(terms=(PROBABILITIES,), steps=TWO_VIEWS)
FLOWGMM, SUPERVISED = Mnist(steps=STEPS), Mnist(unlabelled=False, steps=LABELLED_ONLY)
# With all labels, training sees an image once or twice. Shifts by a pixel are then enough.
ALL_LABELS = Mnist(labels=0, augment=ImageAugment(shift=1), steps=LABELLED_ONLY)

ACCURACY = "accuracy_pct label_nll ece nll minutes"
TEMPERED = {"accuracy_pct": "temp_accuracy_pct", "label_nll": "temp_label_nll", "ece": "temp_ece"}
BRIER = {"accuracy_pct": "accuracy_pct", "label_nll": "label_nll", "ece": "ece", "brier": "brier"}
SHARES = (1.0,) * 3 + (0.75,) * 3 + (0.5,) * 3 + (0.25,)
THINNED = {"shares": SHARES, "steps": STEPS}
L1 = "l1_distance accuracy_pct minutes"
RANDOM = "flowgmm:separation=0.2"
FROM_DATA = "flowgmm:means=latents"

COMPARED = "accuracy_pct label_nll ece cpu_minutes"
OURS = f"{COMPARED} temperature label_nll_at_1 median_nll"


def _key(name: str) -> str:
    """The name of a comparator as a keyword."""
    return name.replace(", ", "_").replace("-", "_").replace(" ", "_")


def compared(data: str, labels: int, **paper: str) -> Iterator[Row]:
    """The lines of a data set: our flow, with and without a graph, FlowGMM's recipe, and every comparator.

    :param paper: accuracies in per cent that the paper reports, by :func:`_key` of the method.
    """
    about, names = f"{data}, {labels} labels", ("FlowGMM", *COMPARATORS)
    theirs = {name: {"accuracy_pct": paper[key]} for name in names if (key := _key(name)) in paper}
    yield row(f"flow, {about}", Flow(data, labels), OURS)
    yield row(f"flow with graph, {about}", Flow(data, labels, graph=True), OURS)
    if data in RATES:
        yield row(f"FlowGMM, {about}", Flow(data, labels, paper=True), OURS, **theirs.get("FlowGMM", {}))
    for name in COMPARATORS:
        yield row(f"{name}, {about}", Comparison(data, labels, name), COMPARED, **theirs.get(name, {}))


TABLES: dict[str, tuple[Row, ...]] = {
    "1": (
        *compared(
            "miniboone",
            20,
            nearest_neighbours="75.3",
            logistic_regression="79.0",
            dropout_net="80.4 ± 0.4",
            label_spreading_dense="79.3",
            Pi_model="80.8 ± 0.01",
            FlowGMM="81.9 ± 0.7",
        ),
        *compared(
            "hepmass",
            20,
            nearest_neighbours="81.2",
            logistic_regression="81.2",
            dropout_net="82.2 ± 0.1",
            label_spreading_dense="84.9",
            Pi_model="87.9 ± 0.2",
            FlowGMM="88.5 ± 0.2",
        ),
        *compared(
            "ag_news",
            200,
            nearest_neighbours="41.6",
            logistic_regression="77.5",
            dropout_net="77.5 ± 0.3",
            label_spreading_dense="36.1",
            Pi_model="80.2 ± 0.3",
            FlowGMM="82.1 ± 1.0",
        ),
        *compared("ag_news", 40),
        *compared("yahoo_2_classes", 20),
        *compared(
            "yahoo",
            800,
            nearest_neighbours="19.8",
            logistic_regression="54.9",
            dropout_net="55.7 ± 0.3",
            label_spreading_dense="36.4",
            Pi_model="56.3 ± 0.04",
            FlowGMM="57.9 ± 0.2",
        ),
    ),
    "2": (
        *compared(
            "cifar10",
            250,
            nearest_neighbours="84.81 ± 0.17",
            logistic_regression="88.13 ± 0.41",
            label_spreading_dense="88.64 ± 0.67",
            label_spreading_as_is="87.20 ± 1.10",
            Pi_model="89.84 ± 0.25",
        ),
        *compared(
            "cifar10",
            1000,
            nearest_neighbours="87.99 ± 0.15",
            logistic_regression="90.40 ± 0.1",
            label_spreading_dense="90.24 ± 0.19",
            label_spreading_as_is="89.13 ± 0.15",
            Pi_model="91.54 ± 0.05",
        ),
    ),
    "3": (
        row("FlowGMM Sup (all labels)", ALL_LABELS, ACCURACY, accuracy_pct="99.63"),
        row(
            "FlowGMM Sup (all labels), three times the minutes",
            replace(ALL_LABELS, steps=3 * LABELLED_ONLY),
            ACCURACY,
            accuracy_pct="99.63",
        ),
        row("M1+M2 VAE SSL", Baseline(), "accuracy_pct label_nll ece minutes", accuracy_pct="97.60 ± 0.02"),
        row("M1+M2 VAE SSL, shifted images", Baseline(shifted=True), "accuracy_pct label_nll ece minutes"),
        row("FlowGMM Sup (n_l labels)", SUPERVISED, ACCURACY, accuracy_pct="97.36"),
        row("FlowGMM", FLOWGMM, ACCURACY, accuracy_pct="98.94"),
        row(
            "FlowGMM-cons, likelihood",
            Mnist(terms=(LIKELIHOOD,), steps=TWO_VIEWS),
            ACCURACY,
            accuracy_pct="99.0",
        ),
        row("FlowGMM-cons, probabilities", CONS, ACCURACY),
    ),
    "4": (
        *(
            row(f"M1+M2 VAE SSL, {n} labels", Baseline(labels=n), "accuracy_pct minutes", accuracy_pct=paper)
            for n, paper in (
                (100, "96.67"),
                (600, "97.41 ± 0.05"),
                (1000, "97.60 ± 0.02"),
                (3000, "97.82 ± 0.04"),
            )
        ),
        *(
            row(
                f"FlowGMM-cons, {n} labels",
                Mnist(n, terms=CONS.terms, steps=CONS.steps),
                ACCURACY,
                accuracy_pct=p,
            )
            for n, p in ((100, "98.2"), (600, "98.7"), (1000, "99"), (3000, "99.2"))
        ),
    ),
    "5": (
        row("FlowGMM", SUPERVISED, BRIER, accuracy_pct="97.3", label_nll="0.295", ece="0.024"),
        row(
            "FlowGMM-temp",
            SUPERVISED,
            {**TEMPERED, "brier": "temp_brier", "temperature": "temperature"},
            accuracy_pct="97.3",
            label_nll="0.094",
            ece="0.004",
        ),
    ),
    "7": (
        row(
            "FlowGMM, moons",
            Toy("moons"),
            "accuracy_pct nll minutes",
            accuracy_pct="99.4 ± 1.1",
            nll="0.82 ± 0.68",
        ),
        row(
            "FlowGMM, circles",
            Toy("circles"),
            "accuracy_pct nll minutes",
            accuracy_pct="97.52 ± 0.5",
            nll="0.83 ± 0.04",
        ),
        row(
            "SCNF, moons",
            Toy("moons", scnf=True),
            "accuracy_pct nll minutes",
            accuracy_pct="99.7 ± 0.2",
            nll="1.11 ± 0.02",
        ),
        row(
            "SCNF, circles",
            Toy("circles", scnf=True),
            "accuracy_pct nll minutes",
            accuracy_pct="95 ± 1.9",
            nll="1.68 ± 0.13",
        ),
        row("FlowGMM, moons, labelled only", Toy("moons", labelled_only=True), "accuracy_pct nll minutes"),
        row(
            "FlowGMM, circles, labelled only", Toy("circles", labelled_only=True), "accuracy_pct nll minutes"
        ),
    ),
    "A": (
        row("gradient of the marginal", FLOWGMM, ACCURACY, accuracy_pct="98.94"),
        row("EM, posterior", Mnist(guide="em", steps=STEPS), ACCURACY, accuracy_pct="98.97"),
        row("EM, most probable label", Mnist(guide="em-hard", steps=STEPS), ACCURACY),
    ),
    "B": (
        row("random, fixed", FLOWGMM, ACCURACY),
        row("latents, fixed", Mnist(prior=FROM_DATA, steps=STEPS), ACCURACY),
        row("random, fixed, a quarter of the steps", Mnist(steps=STEPS // 4), ACCURACY),
        row("latents, fixed, a quarter of the steps", Mnist(prior=FROM_DATA, steps=STEPS // 4), ACCURACY),
        row("random, by gradient", Mnist(prior=f"{RANDOM},fit_means=gradient", steps=STEPS), ACCURACY),
        row("random, by EM", Mnist(prior=f"{RANDOM},fit_means=em", steps=STEPS), ACCURACY),
    ),
    "H": tuple(
        row(
            f"D = {d}",
            Distances(d),
            "distance distance_by_root_2d own_by_d others_by_d above_99_pct",
            distance_by_root_2d="1",
            own_by_d="1",
            others_by_d="3",
        )
        for d in (2, 8, 32, 128, 784)
    ),
    "J": (
        row("Gaussian", FLOWGMM, f"below_99_pct {ACCURACY}"),
        row(
            "Student-t, 5 degrees of freedom",
            Mnist(
                prior="student-t:df=5,means=random,separation=0.2,fit_means=fixed,fit_scales=fixed",
                steps=STEPS,
            ),
            f"below_99_pct {ACCURACY}",
            below_99_pct="0.24",
        ),
    ),
    "K": (
        row(
            "by gradient",
            Mnist(class_probs="learnable", balanced_labels=True, **THINNED),
            L1,
            l1_distance="0.16",
        ),
        row("by EM", Mnist(class_probs="em", balanced_labels=True, **THINNED), L1),
        row("by gradient, labels taken as drawn at random", Mnist(class_probs="learnable", **THINNED), L1),
        row("Dirichlet posterior, data sets covered", Coverage(), "covered_fewest covered_mean sets minutes"),
    ),
}


BASES = {"3": "FlowGMM", "A": "gradient of the marginal", "B": "random, fixed", "J": "Gaussian"}
"""The line with which the others of a table are compared, seed by seed, see :func:`base_of`."""


def base_of(table: str, line: Row) -> str | None:
    """The line with which another one is compared. In Tables 1 and 2 it is the flow on the same data."""
    if isinstance(line.run, Comparison):
        return f"flow, {line.run.data}, {line.run.labels} labels"
    return BASES.get(table)
