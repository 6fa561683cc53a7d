"""The docstrings of constants that a package exports from one of its modules.

autodoc reads the docstring of a constant from the module that it documents. For a constant of another module
it shows the docstring of the constant's type, which says nothing about the constant.
"""

from __future__ import annotations

import sys
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

logger = logging.getLogger(__name__)


def read_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Replace ``lines`` by the docstring in the module that defines the constant ``name``."""
    if what != "data":
        return
    constant = name.rpartition(".")[2]
    for module in [m for n, m in sorted(sys.modules.items()) if n.startswith("pyro_scnf.")]:
        if vars(module).get(constant) is obj:
            found = ModuleAnalyzer.for_module(module.__name__).find_attr_docs().get(("", constant))
            if found is not None:
                lines[:] = found
                return
    logger.warning("%s: no docstring where it is defined", name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", read_docstring)
    return {"parallel_read_safe": True}
