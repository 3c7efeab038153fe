"""The documentation site builds without a warning, works from disk, and loads nothing from a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import nftbench
from tests import chromium

pytest.importorskip("sphinx", reason="sphinx is not installed: pip install -e '.[docs]'")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LOADING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the Makefile's target `docs` runs, on the pages in `source`."""
    made = ["-c", str(ROOT / "docs"), "-d", str(folder / "doctrees"), "-b", "html", str(source), str(folder / "site")]
    command = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", *made]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, which takes about half a minute."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


class Page(HTMLParser):
    """Where a page's links lead, what it loads, and the places in it that have a name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.places.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if LOADING.get(tag) in found:
            self.loads.add(found[LOADING[tag]])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def is_elsewhere(link: str) -> bool:
    return bool(re.match(r"(?:[a-z]+:)?//|mailto:", link))


def test_the_makefile_builds_it_strictly() -> None:
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if " sphinx " in line]
    assert "-E -W --keep-going -c docs" in line


def test_pages_load_nothing_from_a_network(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 100
    assert {load for page in pages.values() for load in page.loads if is_elsewhere(load)} == set()
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), style


def test_every_link_within_the_site_leads_to_a_place(site: Path, pages: dict[Path, Page]) -> None:
    """As a browser follows it from disk, where a folder is no page."""
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            target, _, place = link.partition("#")
            if is_elsewhere(link) or target.startswith("data:"):
                continue
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            if not file.is_file() or (place and file in pages and unquote(place) not in pages[file].places):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_home_is_the_readme_and_leads_to_every_guide(site: Path, pages: dict[Path, Page]) -> None:
    home = pages[site / "index.html"]
    guides = {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert guides | {"docs/api.html", "CHANGELOG.html", "CONTRIBUTING.html", "results/README.html"} <= home.links
    assert "results/index.html" in home.links


def test_the_page_of_published_results_has_every_ranking_of_today(site: Path) -> None:
    """With one leaderboard it is that folder's own page."""
    page = (site / "results" / "index.html").read_text(encoding="utf-8")
    made = [path.parent.name for path in ROOT.glob("results/*/index.html")]
    assert "small" in made
    assert all(f"<h1>{name}</h1>" in page for name in made)
    if len(made) == 1:
        assert page == (ROOT / "results" / made[0] / "index.html").read_text(encoding="utf-8")


def test_every_name_that_plugins_import_is_described(site: Path, pages: dict[Path, Page]) -> None:
    places = pages[site / "docs" / "api.html"].places
    described = {place.rpartition(".")[2] for place in places}
    suites = {"Budget", "Pretraining", "Suite"}  # docs/suites.md has the keys of a suite
    assert set(nftbench.__all__) - suites - described == set()


@pytest.mark.parametrize("link", ["docs/no-such-page.md", "README.md#no-such-place"])
def test_a_broken_link_is_an_error(tmp_path: Path, link: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "docs", source / "docs")
    (source / "README.md").write_text(f"# Home\n\n[broken]({link})\n")
    done = build(source, tmp_path)
    assert done.returncode != 0
    assert any("README.md" in line and link.rpartition("#")[2] in line for line in done.stderr.splitlines())


class TestInChromium:
    """As a reader opens it."""

    pytestmark = chromium.NEEDED

    @pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
    @pytest.mark.parametrize("name", ["index.html", "docs/protocol.html", "docs/api.html", "results/index.html"])
    def test_pages_open_from_disk(self, site: Path, browser: Any, name: str, width: int, scheme: str) -> None:
        page = chromium.show(browser, site / name, width, scheme)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        back = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", back)[:3])) < 60) == (scheme == "dark")
        assert browser.get_log("browser") == []
        assert all(url.startswith(site.as_uri()) for url in chromium.loaded(browser))

    def test_the_search_works_from_disk(self, site: Path, browser: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        page = chromium.show(browser, site / "index.html")
        page.find_element("css selector", ".sidebar-search").send_keys("suppression\ue007")

        def found() -> list[str]:
            return [one.get_attribute("href") for one in page.find_elements("css selector", "#search-results li a")]

        # Results appear one after the other.
        WebDriverWait(page, 20).until(lambda _: any("docs/protocol.html" in one for one in found()))
        assert not any("/defenses/" in one for one in found()), "pages of single rows would hide the others"
        assert browser.get_log("browser") == []
        assert all(url.startswith(site.as_uri()) for url in chromium.loaded(browser))
