"""The directive ``results``: tables of the page *Results*, written from ``benchmarks/results/*.json``.

``.. results:: NAME ...`` shows every file ``NAME_DEVICE.json``, so a measurement on another device appears
as soon as its file is there. ``.. results::`` without a name shows the files that no directive above it
named. A missing file gives a sentence on how to make it.

A record is read by its form, not by its name. Each of these entries becomes a table:

- ``results``: for each run, figures with the values of all seeds;
- ``seconds``, ``ratios``, ``times_networks_alone``: times of steps, and how they compare;
- ``steps_per_second``: speed by load and by setting;
- ``paper`` and ``ours``: the rows of a published table, each with its runs, or with its figures by name;
- ``coverage``: for each estimate of each example, how many intervals hold the truth.

Other entries are listed below the tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

# The figures that have a column: heading, and digits after the point.
FIGURES = {
    "test_error_pct": ("test error, %", 2),
    "test_nll": ("test NLL, nats", 3),
    "test_bits_per_dim": ("bits/dim", 3),
    "test_label_nll": ("label NLL, nats", 3),
    "test_ece": ("test ECE", 4),
    "graph_error_pct": ("error of the graph, %", 2),
    "test_with_graph_error_pct": ("error of both, %", 2),
    "samples_pct": ("samples right, %", 1),
    "worst_class_pct": ("right in the worst class, %", 1),
    "samples_at_1_pct": ("right at temperature 1, %", 1),
    "swaps_pct": ("swaps right, z_aux = 0, %", 1),
    "swaps_with_aux_pct": ("swaps right, %", 1),
    "rand_index": ("Rand index, adjusted", 3),
    "rand_index_all": ("of all classes", 3),
    "seconds": ("seconds", 0),
}
WORDS = {
    "parallel": "runs at a time",
    "f_w_passes": "passes of f_w in a step",
    "parameters": "number of parameters",
    "loss_nats_per_row": "loss, nats per row",
    "rand_index": "adjusted Rand index",
    "rand_index_all": "that of all classes",
    "images_per_class": "samples of each class, and images with swapped labels",
    "density_error_nats": "error of the density, nats",
    "test_bits_per_dim_of_seed_0": "bits/dim of seed 0",
}
HIDDEN = {"note", "smoke_test"}  # in a group; its note comes last
# Entries that are not listed below the tables, because they are shown elsewhere or say nothing to a reader.
UNLISTED = {"results", "seconds", "ratios", "times_networks_alone", "bounds", "bound", "steps_per_second"}
UNLISTED |= {
    "paper",
    "ours",
    "runs",
    "table",
    "benchmark",
    "environment",
    "complete",
    "absent",
    "paired_accuracy",
    "run",
    "failed",
}
UNLISTED |= {"coverage"} | HIDDEN

OF_PAPERS = {
    "accuracy_pct": ("accuracy, %", 2),
    "error_pct": ("test error, %", 2),
    "nll": ("NLL, nats", 3),
    "median_nll": ("NLL of the median row, nats", 2),
    "label_nll": ("label NLL, nats", 3),
    "label_nll_at_1": ("label NLL at temperature 1", 3),
    "ece": ("ECE", 4),
    "brier": ("Brier score", 4),
    "temperature": ("temperature", 2),
    "below_99_pct": ("below .99 confidence, %", 2),
    "above_99_pct": ("above .99 confidence, %", 1),
    "l1_distance": ("L1 distance", 3),
    "covered_fewest": ("covered, of the worst class", 1),
    "covered_mean": ("covered, of all classes", 1),
    "sets": ("data sets", 0),
    "distance": ("distance of two means", 2),
    "distance_by_root_2d": ("… / √(2D)", 3),
    "own_by_d": ("squared distance to the own mean / D", 3),
    "others_by_d": ("to another / D", 3),
    "accuracy_quarter_pct": ("accuracy after a quarter, %", 2),
    "minutes": ("minutes", 1),
    "cpu_minutes": ("CPU minutes", 1),
    "function_evaluations": ("evaluations of a solve", 0),
    "parameters": ("parameters", 0),
}
"""Figures of published tables by name: heading, and digits after the point."""

OF_SET = re.compile(r"(?P<line>.*?)(?:, (?P<set>[^,]+, \d+ labels))?")
"""The name of a line: first what it is, then perhaps its data set and number of labels."""

Record = Mapping[str, Any]


def unbroken(text: str) -> str:
    """The same text with no-break spaces. Browsers do not break a line at these."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation of the values of several seeds."""
    if len(values) < 2:
        return f"{mean(values):.{digits}f}"
    return unbroken(f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}")


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int] | None = None
) -> list[str]:
    """A list-table in reStructuredText. Its columns are as wide as they need unless ``widths`` says so."""
    shares = "auto" if widths is None else " ".join(map(str, widths))
    lines = [".. list-table::", "    :header-rows: 1", f"    :widths: {shares}", ""]
    for row in (heading, *rows):
        lines += [f"    {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]


def accuracy_table(results: Record) -> list[str]:
    """One row for each run, followed by rows for its baselines, if it has any."""
    rows: list[tuple[str, Record]] = []
    for name, figures in results.items():
        rows.append((f"``{name}``", figures))
        for baseline, figure in figures.get("baselines_error_pct", {}).items():
            rows.append((baseline, {"test_error_pct": figure}))
    columns = [key for key in FIGURES if any(key in figures for _, figures in rows)]
    body = []
    for name, figures in rows:
        cells = [spread(figures[k]["runs"], FIGURES[k][1]) if k in figures else "" for k in columns]
        body.append((name, str(len(figures["test_error_pct"]["runs"])), *cells))
    return table(("run", "seeds", *(FIGURES[key][0] for key in columns)), body)


def entries(group: Record, leaf: str) -> Iterator[tuple[str, Any]]:
    """The entries of a group by name. An entry that is a group itself holds the entries of a batch size."""
    for name, value in group.items():
        if isinstance(value, Mapping) and leaf not in value:
            yield from ((f"batch of {name}: {inner}", entry) for inner, entry in value.items())
        else:
            yield name, value


def seconds_table(seconds: Record) -> list[str]:
    rows = [
        (name, f"{min(times):.4g}", f"{median(times):.4g}", str(len(times)))
        for name, times in entries(seconds, "")
    ]
    return table(("step", "shortest, s", "median, s", "rounds"), rows)


def ratio_table(heading: str, ratios: Record, bounds: Record) -> list[str]:
    rows = []
    for name, ratio in entries(ratios, "value"):
        bound = bounds.get(name, bounds.get(name.partition(": ")[2], ""))
        quartiles = unbroken(f"{ratio['low']:.2f} to {ratio['high']:.2f}")
        rows.append((name, f"{ratio['value']:.2f}", f"{ratio['median']:.2f}", quartiles, str(bound)))
    return table((heading, "of the shortest times", "median round", "quartiles", "bound"), rows)


def speed_table(speeds: Record) -> list[str]:
    columns = list(dict.fromkeys(name for row in speeds.values() for name in row))
    rows = [
        (load, *(f"{row[name]:.1f}" if name in row else "" for name in columns))
        for load, row in speeds.items()
    ]
    return table(("steps per second", *columns), rows)


def paper_table(paper: Record, ours: Record, failed: Mapping[str, object]) -> list[str]:
    """Rows of a published table beside ours. ``failed`` has the rows whose runs ended with an error."""
    rows = []
    for name, theirs in paper.items():
        done = [run for run in ours[name] if run["finished"]]
        error = bits = ""
        if done:
            error = spread([run["test_error_pct"] for run in done], 2)
            bits = spread([run["test_bits_per_dim"] for run in done], 4)
            state = f"{len(done)} seed{'s' * (len(done) > 1)}"
        elif name in failed:
            state = "training failed"
        else:
            state = f"stopped at step {max(run['steps'] for run in ours[name])}" if ours[name] else "not run"
        rows.append((name, theirs["error_pct"], error, theirs["bits_per_dim"], bits, state))
    return table(("model", "test error, %: paper", "ours", "bits/dim: paper", "ours", ""), rows)


def figures_tables(paper: Record, ours: Record, paired: Record) -> list[str]:
    """A table for each data set that the lines are named after, as in ``"flow, ag_news, 40 labels"``.

    ``paired`` are differences of accuracy by ``"LINE less BASE"``. They make one more column.
    """
    bases = {name.partition(" less ")[0]: name for name in paired}
    sets: dict[str, dict[str, str]] = {}
    for name in ours:
        found = OF_SET.fullmatch(name)
        sets.setdefault(found["set"] or "", {})[name] = found["line"]
    lines = []
    for about, names in sets.items():
        differences = {name: paired[bases[name]] for name in names if name in bases}
        base = {OF_SET.fullmatch(bases[name].partition(" less ")[2])["line"] for name in differences}
        lines += figures_table(
            about.replace("_", " "),
            {line: paper[name] for name, line in names.items()},
            {line: ours[name] for name, line in names.items()},
            {names[name]: found for name, found in differences.items()},
            " or ".join(base),
        )
    return lines


def figures_table(about: str, paper: Record, ours: Record, paired: Record, base: str) -> list[str]:
    """Rows of a published table: our figures, and in brackets those of the paper."""
    shown = {name for figures in (*ours.values(), *paper.values()) for name in figures}
    columns = [name for name in OF_PAPERS if name in shown]
    rows = []
    for name, figures in ours.items():
        cells = []
        for column in columns:
            own = spread(figures[column]["runs"], OF_PAPERS[column][1]) if column in figures else ""
            theirs = paper[name].get(column)
            cells.append(f"{own} ({unbroken(theirs)})".strip() if theirs else own)
        seeds = max((len(figure["runs"]) for figure in figures.values()), default=0)
        cells += [difference(paired[name]) if name in paired else ""] if paired else []
        rows.append((name, *cells, str(seeds) if seeds else "not run"))
    more = [f"accuracy less that of {base}, % (95 % interval; seeds)"] if paired else []
    heading = (about, *(OF_PAPERS[name][0] for name in columns), *more, "seeds")
    return table(heading, rows)


def difference(found: Record) -> str:
    """A mean difference of pairs of runs, its interval of 95 %, and the number of pairs."""
    low, high = found["interval_95"]
    return unbroken(f"{found['mean']:+.2f} ({low:+.2f} to {high:+.2f}; {len(found['runs'])})")


def coverage_table(coverage: Record) -> list[str]:
    """One row for each estimate. Its cells hold a count for each component."""
    rows = []
    for example, found in coverage.items():
        minutes = found["figures"]["cpu_minutes"]["runs"]
        for name, counts in found["estimates"].items():
            wrong = found["wrong_model"].get(name, [])
            cells = (plain(counts), plain(wrong), str(len(minutes)), spread(minutes, 1))
            rows.append((f"``{example}``: {name}", *cells))
    return table(("estimate", "intervals with the truth", "of the wrong model", "of", "CPU minutes"), rows)


def plain(value: object) -> str:
    """An entry of a record in words."""
    if isinstance(value, Mapping):
        note = [f"({value['note']})"] if "note" in value else []
        parts = [f"{WORDS.get(k, k)} {plain(v)}" for k, v in value.items() if k not in HIDDEN]
        return " ".join([", ".join(parts).replace("_", " "), *note])
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def record_text(stem: str, record: Record) -> list[str]:
    """A record in reStructuredText: the machine, the tables, and the other entries."""
    environment = dict(record["environment"])
    processor = environment.pop("processor")
    lines = [f"**{environment.pop('gpu', processor)}**: {plain(environment)}.", ""]
    if not record.get("complete", True):
        lines += ["This measurement is not complete.", ""]
    if "results" in record:
        lines += accuracy_table(record["results"])
    if "seconds" in record:
        lines += seconds_table(record["seconds"])
    if "ratios" in record:
        lines += ratio_table("ratio", record["ratios"], record.get("bounds", {}))
    if "times_networks_alone" in record:
        bounds = {"pyro-scnf": record["bound"]}
        lines += ratio_table("times the networks alone", record["times_networks_alone"], bounds)
    if "steps_per_second" in record:
        lines += speed_table(record["steps_per_second"])
    if "paper" in record:
        by_name = all(isinstance(row, Mapping) for row in record["ours"].values())
        if by_name:
            lines += figures_tables(record["paper"], record["ours"], record.get("paired_accuracy", {}))
        else:
            lines += paper_table(record["paper"], record["ours"], record.get("failed", {}))
    if "coverage" in record:
        lines += coverage_table(record["coverage"])
    for key, value in record.items():
        if key not in UNLISTED:
            lines += [f"- {WORDS.get(key, key.replace('_', ' '))}: {plain(value)}"]
    if "note" in record:
        lines += [f"- note: {record['note']}"]
    if "run" in record:
        lines += [f"- made by: ``{record['run']['command']}``, {record['run']['minutes']:.0f} minutes"]
    return [*lines, f"- all values: ``benchmarks/results/{stem}.json``", ""]


def missing_text(names: Sequence[str]) -> list[str]:
    """How to make the records ``NAME_DEVICE.json``, none of which is there."""
    files = " or ".join(f"``benchmarks/results/{name}_DEVICE.json``" for name in names)
    command = f"python -m benchmarks.all --device DEVICE --only {' '.join(names)}"
    return [f"There is no measurement yet. ``{command}`` writes {files}.", ""]


class Results(SphinxDirective):
    """``.. results:: NAME ...``, see the module."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(__file__)
        self.env.note_reread()  # a later build may find more files
        shown: set[str] = self.env.temp_data.setdefault("results", set())
        names = self.arguments[0].split() if self.arguments else []
        wanted = re.compile(rf"({'|'.join(names)})_(cpu|cuda)\w*")
        files = {path.stem: path for path in sorted(RESULTS.glob("*.json"))}
        chosen = [stem for stem in files if (wanted.fullmatch(stem) if names else stem not in shown)]
        shown.update(chosen)
        lines = missing_text(names) if names and not chosen else []
        for stem in chosen:
            try:
                lines += record_text(stem, json.loads(files[stem].read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self.error(f"{files[stem]}: not a record of a benchmark ({error!r})") from error
        return parsed(self, lines)


def parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    """Lines of reStructuredText in the place of a directive."""
    parent = nodes.container()
    directive.state.nested_parse(StringList(lines, source=directive.env.docname), 0, parent)
    return parent.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
