"""The protection card in a real Chromium, from disk: on a phone, in dark mode, with the keyboard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from nftbench.report import card as cards
from nftbench.report.card import Card
from nftbench.scoring.table import Table
from nftbench.terms import Verdict
from tests import chromium

pytestmark = chromium.NEEDED
COLUMNS = ("", *(f"score of attack number {number}" for number in range(8)))


@pytest.fixture
def card() -> Card:
    """A card with a wide table, a long name and a long command."""
    return Card(
        name="a-release-with-a-long-name" * 4,
        verdict="refuted",
        answer="The protection is refuted.",
        facts=(("release", "folder/" * 30), ("model", "gpt2")),
        tables=((Table("What was tried", COLUMNS, (("full", *["24.2 [6.2, 42.1]"] * 8),)), "The strongest first."),),
        doubts=("no utility metric is above its floor",),
        limits=("The attacks are strong baselines.",),
        command="nftbench audit " + "a-release" * 40,
        model_index="model-index:\n- name: " + "mine" * 50,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_not_the_card(browser: Any, card: Card, tmp_path: Path, scheme: str) -> None:
    """The first column stays in sight, and the keyboard reaches what scrolls."""
    path = tmp_path / "card.html"
    path.write_text(cards.as_html(card), encoding="utf-8")
    page = chromium.show(browser, path, width=390, scheme=scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    moved = page.execute_script(
        "const box = document.querySelector('.scroll'), head = box.querySelector('tbody th');"
        "const before = head.getBoundingClientRect().left; box.scrollLeft = 300;"
        "return [box.scrollLeft, head.getBoundingClientRect().left - before, box.tabIndex]"
    )
    assert moved == [300, 0, 0]
    assert browser.get_log("browser") == []
    assert chromium.loaded(browser) == {path.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_words_stand_out_from_the_card(browser: Any, card: Card, tmp_path: Path, scheme: str, verdict: Verdict) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, AA) of text, notes and the verdict."""
    path = tmp_path / "card.html"
    path.write_text(cards.as_html(replace(card, verdict=verdict)), encoding="utf-8")
    page = chromium.show(browser, path, scheme=scheme)
    back, *fronts, stripe = page.execute_script(
        "const style = getComputedStyle(document.querySelector('.answer'));"
        "return ['page', 'text', 'quiet', 'mark', 'stripe'].map((name) => style.getPropertyValue(`--${name}`))"
    )
    assert (chromium.luminance(back) > 0.5) == (scheme == "light")
    assert min(chromium.contrast(front, back) for front in fronts) >= 4.5
    assert chromium.contrast(fronts[0], stripe) >= 4.5
