"""The settings of Sphinx for the documentation site: `make site` builds it from the pages where they lie."""
root_doc = "README"
project = "nftbench"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/*.rst", "results/**.md"]
html_theme = "furo"
default_role = "code"
myst_heading_anchors = 4
autodoc_member_order = "bysource"
suppress_warnings=["toc.not_included"]
