"""The settings of Sphinx for the documentation site, which `make docs` builds into build/site.

The pages are read where they lie: README.md is the home page, and links to files work here as they do on GitHub. The
page of published results is added at the end.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("standard", "small")
"""The suites whose tabs come first on the page of published results."""

project = "nftbench"
html_title = "nftbench"
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/*.rst", "results/**.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_numpy_docstring = False

myst_heading_anchors = 4
default_role = "code"  # docstrings write code between single backticks
add_module_names = False
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_show_search_summary = False  # a summary is fetched from the page, which a browser refuses from disk
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "published.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}

CONTENTS = """

```{toctree}
:hidden:
:caption: Use
docs/verbs
docs/suites
docs/architectures
docs/protocol
docs/clusters
docs/ci
docs/exports
docs/moving
CHANGELOG
```

```{toctree}
:hidden:
:caption: Extend
docs/plugins
docs/api
docs/architecture
docs/performance
CONTRIBUTING
```

```{toctree}
:hidden:
:caption: Results
docs/validity
docs/reproduction
results/README
```

```{toctree}
:hidden:
:glob:
:caption: Tables of results
results/*/*
```
"""
"""The contents, which stand beside every page. A page that is missing here is an error."""


LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)\)")


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Give the home page the contents, and links to folders a page to lead to.

    The pages of single rows are neither in the contents nor found by the search: their leaderboard leads to them.
    """
    place = (ROOT / page).parent
    source[0] = LINK.sub(lambda link: to_page(link, place), source[0])
    if page == root_doc:
        source[0] += CONTENTS
    elif "/defenses/" in page:
        source[0] = f"---\norphan: true\nnosearch: true\n---\n{source[0]}"


def to_page(link: re.Match[str], place: Path) -> str:
    """A link in Markdown: one to a folder of results leads to its leaderboard; of any other folder the text stays."""
    text, target = link.groups()
    if not (place / target).is_dir():
        return link[0]
    return f"[{text}]({target}/leaderboard.md)" if (place / target / "leaderboard.md").exists() else text


def add_pages(app: Sphinx, error: Exception | None) -> None:
    """Write index.html, which is the home page, and results/index.html, the page of published results."""
    from nftbench.report import web

    if error is None and app.builder.name == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")
        (app.outdir / "results" / "index.html").write_text(web.text(published()), encoding="utf-8")


def published() -> list[tuple[Any, str]]:
    """The leaderboards of results/ with their commands; those of a former protocol do not compare and are left out."""
    from nftbench.cli import execution
    from nftbench.errors import NftbenchError
    from nftbench.records.store import Store, default_cache

    found = []
    names = sorted(path.parent.name for path in ROOT.glob("results/*/leaderboard.md"))
    for name in sorted(names, key=lambda one: FIRST.index(one) if one in FIRST else len(FIRST)):
        store = Store(ROOT / "results" / name, default_cache())
        try:
            manifest = store.manifest()
        except NftbenchError:
            continue
        board = execution.rank(store.planned(manifest), manifest)
        found.append((replace(board, suite=name), manifest.command))  # two folders may be of one suite
    return found


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
    app.connect("build-finished", add_pages)
