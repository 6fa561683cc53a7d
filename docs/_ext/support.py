"""The directive ``support``: rows of the page *What works with Pyro*, from ``docs/support.json``.

``.. support:: RESULT`` shows the rows of one result: ``works``, ``raises`` or ``trap``. The tests that a row
names check what it says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from results import parsed, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROWS = Path(__file__).parents[1] / "support.json"


def _short(test: str) -> str:
    """The name of a test without that of the file that holds most of them, and with a place for a break."""
    return test.removeprefix("test_pyro_support.py::").replace(".py::", ".py:: ")


class Support(SphinxDirective):
    """``.. support:: RESULT``, see the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(ROWS))
        self.env.note_dependency(__file__)
        rows = []
        for name, row in json.loads(ROWS.read_text(encoding="utf-8")).items():
            if row["result"] == self.arguments[0]:
                error = f"{row['error']:.0e}" if "error" in row else ""
                tests = ", ".join(f"``{_short(test)}``" for test in row["tests"])
                cells = (name, error, str(row.get("passes", "")), row.get("note", ""), tests)
                rows.append(cells)
        if not rows:
            raise self.error(f"{ROWS}: no row has the result {self.arguments[0]!r}")
        works = self.arguments[0] == "works"
        heading = ("what", "relative error below", "passes of f_w", "remark", "test")
        kept = range(5) if works else (0, 3, 4)
        widths = [(21, 11, 9, 17, 42)[i] for i in kept]
        lines = table([heading[i] for i in kept], [[row[i] for i in kept] for row in rows], widths)
        return parsed(self, lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("support", Support)
    return {"parallel_read_safe": True}
