"""How Sphinx builds the site from these pages; `make docs` does it."""

from __future__ import annotations

import shmbatch
from shmbatch.client.function import Function
from shmbatch.client.verbs import VerbMethod
from shmbatch.protocol._core import GetVerb, Verb

project = "shmbatch"
author = "the authors of shmbatch"
project_copyright = f"2026, {author}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
exclude_patterns = ["examples"]

html_theme = "furo"
html_title = "shmbatch"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3  # so that pages can link to each other's headings

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "py:obj"  # what docstrings have between single backticks

# A verb is an object with a twin; what its documentation is about is the method inside.
for owner in (Function, shmbatch.FunctionCall):
    for name, member in list(vars(owner).items()):
        if isinstance(member, (VerbMethod, GetVerb)):
            setattr(owner, name, member.__wrapped__)
        elif isinstance(member, staticmethod) and isinstance(member.__func__, Verb):
            setattr(owner, name, staticmethod(member.__func__.__wrapped__))
