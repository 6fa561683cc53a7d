"""What the package's source files import, read from their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_scnf"


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and all nodes in it, without those under ``if TYPE_CHECKING:``."""
    yield node
    typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    children = node.orelse if typing_only else ast.iter_child_nodes(node)
    for child in children:
        yield from run_time_nodes(child)


def imported_modules(path: Path) -> set[str]:
    """Modules that a file imports at run time, in functions as well.

    ``from package import name`` counts as ``package.name``: the name may be a module.
    """
    modules = set()
    for node in run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def required_modules(path: Path) -> list[tuple[str, str]]:
    """Module and extra of every call of ``pyro_scnf._extras.require`` in a file."""
    if "pyro_scnf._extras.require" not in imported_modules(path):
        return []
    return [
        (ast.literal_eval(node.args[0]), ast.literal_eval(node.args[1]))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require"
    ]
