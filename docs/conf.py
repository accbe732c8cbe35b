"""The documentation site: Sphinx over the Markdown of this folder; ``make docs`` builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for docs.extensions

import condexp

project = "condexp"
author = "The condexp authors"
version = release = condexp.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docs.extensions.config_keys",
    "docs.extensions.drawn",
    "docs.extensions.mathml",
    "docs.extensions.offline",
    "docs.extensions.project_links",
    "docs.extensions.subscripts",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as GitHub names them: tests/test_docs.py

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["lightning", "transformers"]  # extras; their callbacks are documented
napoleon_use_rtype = False

# make docs calls Sphinx with -n -W: every reference resolves, but those to other packages and to
# what is not public.
INNER = r"condexp\.(analysis\.any_batch|analysis\.loss|runs\.record_folder)\..*"
nitpick_ignore_regex = [("py:.*", r"(?!condexp).*"), ("py:.*", INNER)]

html_theme = "furo"
html_title = f"condexp {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses a file
