"""The documentation site: `make docs` builds it into build/site, to be opened from disk.

Sphinx reads the pages of this folder as they are (MyST) and sets them in the theme Furo. Nothing is
fetched, neither at the build nor by a reader: search is a script of the site's own, formulas are
MathML, and fonts are the reader's.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

from leaveout import __version__

project = "leaveout"
author = "leaveout contributors"
release = version = __version__
copyright = f"{author}, MIT licence"  # Sphinx's name for it

extensions = ["myst_parser"]
# as GitHub shows the same files: headings are anchors, ```math is a formula
myst_heading_anchors = 3
myst_fence_as_directive = ["math"]
smartquotes = False  # --configfile stays as it is
nitpicky = True

html_theme = "furo"
html_title = f"leaveout {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_use_index = False
html_show_search_summary = False  # would be read over HTTP, which a page on disk may not


def formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    writer.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def files_not_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links to Markdown outside this folder lead to a copy of the file, as all others do."""
    source[0] = re.sub(r"\]\((\.\./[^)#]*\.md)(#[^)]*)?\)", r"](path:\1)", source[0])


def setup(app: Sphinx) -> None:
    """Register both."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("source-read", files_not_pages)
