"""Sphinx's settings for the site; tools/build_site.py collects the sources and calls Sphinx with this folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from links import address
from site_reference import escape_shapes

SLUG, TAG = address()

project = "SNOWS"
author = copyright = "SNOWS contributors"
version = release = TAG.removeprefix("v")
html_title = f"SNOWS {release}"
extensions = [
    "myst_nb",  # notebooks and Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's style
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # a PyPI package that holds MathJax: a page asks no other host for it
    "sphinx_copybutton",
]
root_doc = "index"
exclude_patterns: list[str] = []

# Notebooks are shown as committed. Their cells' Markdown outputs hold formulas, too.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show = "Show this cell's code"
nb_code_prompt_hide = "Hide this cell's code"
nb_ipywidgets_js: dict[str, Any] = {}  # no live widgets: every one has a static figure beside it
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 6  # links to headings work as on GitHub
myst_dmath_double_inline = True
suppress_warnings = [
    "ref.python",  # two rooms may use one short name; the page of each says which
    "myst.header",  # a notebook of one cell may begin with a lower heading
    "mystnb.unknown_mime_type",  # a widget beside its picture
    "misc.highlighting_failure",  # shell output in a code block
]

# Reference: the fields of a dataclass stand once, in the table of their section Attributes.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"  # for a module: the order of __all__
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "source_repository": f"https://github.com/{SLUG}/",
    "source_branch": TAG,
    "source_directory": "",
    "top_of_page_buttons": [],
    "footer_icons": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Connect what no extension does."""
    app.connect("autodoc-process-docstring", escape_shapes)
