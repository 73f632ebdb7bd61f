"""How Sphinx builds the site: `make docs`. Nothing is fetched while it builds, nor by the pages it makes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

import pages

import autoencode

if TYPE_CHECKING:
    from sphinx.application import Sphinx

pages.write()

project = "autoencode"
author = "The autoencode authors"
copyright = "2026, the autoencode authors"
version = release = autoencode.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"autoencode {release}"
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4
# Notebooks are shown as they are committed; `make notebooks` runs them.
nb_execution_mode = "off"
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
# Docstrings put code in single backticks.
default_role = "literal"
napoleon_use_rtype = False
# Every reference to a public name must lead somewhere. Those to other packages cannot without a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!autoencode\.\w+$).*")]


def setup(app: Sphinx) -> None:
    """Let pages link to files in the root of the repository, which the site has under other names."""

    def relink(app: Sphinx, name: str, text: list[str]) -> None:
        text[0] = pages.at_home(text[0])

    app.connect("source-read", relink)
