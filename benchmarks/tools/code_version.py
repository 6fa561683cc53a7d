"""A short name for a version of the code, which comments and layout do not change."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["code_version"]


def code_version(paths: Iterable[Path], root: Path, options: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that change if the code or the options change.

    Comments, docstrings and line breaks do not count. The digits also depend on the version of Python,
    whose syntax trees differ.

    :param paths: Python files.
    :param root: folder that the names of the files are relative to.
    """
    digest = hashlib.sha256(repr(list(options)).encode())
    for path in sorted(paths):
        tree = _without_docstrings(ast.parse(path.read_text()))
        digest.update(f"{path.relative_to(root).as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A string that stands alone does nothing: a docstring, or the note below an attribute.
            node.body = [child for child in node.body if not _is_string(child)]
    return tree


def _is_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
