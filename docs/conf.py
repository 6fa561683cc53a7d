"""Sphinx configuration."""

import pyro_scnf

project = "pyro-scnf"
author = "The pyro-scnf developers"
copyright = "The pyro-scnf developers"
version = release = pyro_scnf.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
default_role = "code"

html_theme = "furo"
html_title = "pyro-scnf"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

# Examples in docstrings are run by pytest; here only what is marked as an example is.
doctest_test_doctest_blocks = ""
doctest_global_setup = """
import pyro
import torch

torch.set_num_threads(1)
pyro.set_rng_seed(0)
pyro.clear_param_store()
"""
