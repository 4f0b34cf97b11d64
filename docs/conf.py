"""The documentation site: `sphinx-build -W -n docs site`, with `pip install -e '.[docs]'` in a clone.

Nothing is downloaded while it is built. With `DOCS_EXECUTE=1` the notebooks are run (and kept in a cache), which takes
the packages that each of them names; without it their pages show the code alone.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import onnx_gradcam.options

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "onnx-gradcam"
author = "The onnx-gradcam developers"
release = version = onnx_gradcam.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "cli_reference",
]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["samples", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "dollarmath"]
myst_heading_anchors = 4
# Options would become dashes and typographic quotes.
smartquotes = False
# Fenced blocks without a language are commands.
highlight_language = "bash"

# A notebook is a percent script: small differences in git, checked like any code, no outputs stored.
nb_custom_formats = {".nb.py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache" if os.environ.get("DOCS_EXECUTE") else "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

# Docstrings write code between single backticks.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "special-members": "__call__"}
maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"onnx-gradcam {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

# Words of annotations that are not pages: other packages, and our own names for unions and sets of words.
_ALIASES = [
    *onnx_gradcam.options.__all__,
    "ImageSource",
    "ModelSource",
    "Watched",
    "Randomization",
    "Which",
    "Engine",
    "[A-Z][A-Za-z]*Choices?",
]
nitpick_ignore_regex = [
    ("py:.*", r"(numpy|np|npt|onnx|torch|collections|os|pathlib)\..*"),
    ("py:.*", r"Path|Array|Unpack|Iterable|Iterator|Sequence|Mapping|Callable"),
    ("py:.*", rf"([a-z_]+\.)*({'|'.join(_ALIASES)})"),
    # What the package is made of: CONTRIBUTING describes it.
    ("py:.*", r"onnx_gradcam\.(graph|editor|batching\.records|runtime\.session|images|metadata)\..*"),
    ("py:.*", r"onnx_gradcam\.evaluation\.(scoring\.Evaluator|pairing\.Laid|randomization\.Layer)"),
]

# Files of the repository that are pages here, under other names.
_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "models/README.md": "demo.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")


def _links(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Point links to files of the repository that are pages here at these pages."""
    folder = posixpath.dirname(docname)

    def page(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        return f"]({posixpath.relpath(_PAGES[path], folder or '.')}" if path in _PAGES else match[0]

    source[0] = _LINK.sub(page, source[0])


def _short(app: Sphinx, env: BuildEnvironment, node: pending_xref, inner: Element) -> Element | None:
    """The page of a class that an annotation or a docstring names without its module."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    found = [entry for name, entry in env.domains["py"].data["objects"].items() if name.rpartition(".")[2] == last]
    if len({entry.docname for entry in found}) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, inner)


def _no_type(_app: Sphinx, what: str, _name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Put back what Napoleon took for the type of a property: the words in front of a colon in its first line."""
    marker = ":type: "
    types = [line for line in lines if what == "property" and line.startswith(marker)]
    for line in types:
        lines.remove(line)
        lines[0] = f"{line.removeprefix(marker)}: {lines[0]}"


def setup(app: Sphinx) -> None:
    """Connect the hooks of this site."""
    app.connect("source-read", _links)
    app.connect("missing-reference", _short)
    app.connect("autodoc-process-docstring", _no_type, priority=600)
