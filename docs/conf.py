"""Sphinx configuration."""

import sys
from importlib.resources import files
from pathlib import Path

import pyro_scnf

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "pyro-scnf"
author = "The pyro-scnf developers"
copyright = "The pyro-scnf developers"
version = release = pyro_scnf.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "exported_data",
    "results",
    "support",
]
exclude_patterns = ["_build"]
default_role = "code"

html_theme = "furo"
html_title = "pyro-scnf"

# Formulas must render without a network, so MathJax is copied from an installed package. This build of it is
# one file: it draws formulas as SVG, which needs no fonts, and has all extensions, so it loads nothing.
mathjax_path = "tex-svg-full.js"
mathjax = files("sphinx-mathjax-offline") / "static" / "mathjax" / mathjax_path
html_static_path = ["_static", str(mathjax)]
html_css_files = ["tables.css"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "no-value": True}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

# Examples in docstrings are run by pytest; here only what is marked as an example is.
doctest_test_doctest_blocks = ""
doctest_global_setup = """
import pyro
import torch

torch.set_num_threads(1)
pyro.set_rng_seed(0)
pyro.clear_param_store()
"""
