"""index.html: one or several leaderboards as a page that works from disk, in one file without a network.

Everything shown is in the file's HTML; the script adds sorting, filters, pictures and tabs. Sorting is DataTables',
pictures are Apache ECharts'; both lie in `vendored/` with their licences. The page's policy lets no other script run
and nothing be loaded.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from nftbench.report.labels import NAMED
from nftbench.report.web.charts import charts
from nftbench.report.web.view import views
from nftbench.scoring.leaderboard import Leaderboard

HERE = Path(__file__).parent
SCRIPTS = ("vendored/datatables-3.1.5.min.js", "vendored/echarts-6.1.0.common.min.js", "page.js")
"""In the order in which they run."""

PARTS = re.compile(r"(?<=[\[,=])(?=[a-z])")
"""Where a specification may be broken into lines."""

CODE = re.compile(r"`([^`]+)`")


def text(boards: Sequence[tuple[Leaderboard, str]], folders: Sequence[str] = ()) -> str:
    """The page of these leaderboards, each with the command that made it; several become tabs.

    Args:
        folders: the names of the leaderboards' folders, which tell several of one suite apart.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markdown_it import MarkdownIt
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # what is said of a point has an order
    # Raw HTML in the Markdown is escaped: the guides of side tables are text too.
    markdown = MarkdownIt("commonmark", {"html": False})
    # Escaping adds no place where text may be broken, so the whole text can be escaped at once.
    environment.filters["breakable"] = lambda source: Markup(PARTS.sub("<wbr>", str(escape(source))))
    environment.filters["coded"] = lambda source: Markup(CODE.sub(r"<code>\1</code>", str(escape(source))))
    environment.filters["markdown"] = lambda source: Markup(markdown.render(source))
    environment.globals["named"] = NAMED
    shown = views(boards, folders)
    return environment.get_template("index.html").render(
        views=shown,
        charts={one.name: charts(one.board, one.labels) for one in shown},
        style=Markup(_file("style.css")),
        scripts=[Markup(_file(name)) for name in SCRIPTS],
        policy=_policy(),
    )


@functools.cache
def _policy() -> str:
    """The Content-Security-Policy: these scripts alone, styles in the page, and no network."""
    hashes = [base64.b64encode(hashlib.sha256(_file(name).encode()).digest()).decode() for name in SCRIPTS]
    scripts = " ".join(f"'sha256-{one}'" for one in hashes)
    # ECharts and DataTables set style attributes.
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
