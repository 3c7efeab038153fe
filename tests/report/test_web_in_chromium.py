"""The page in a real Chromium, from disk: sort, filter, hover, click, open, tabs, dark mode, and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftbench.report import styles, web
from nftbench.scoring import Leaderboard
from tests import chromium
from tests.factories import COST, curve, scored, suite, sweep

pytestmark = chromium.NEEDED
EVIL = "evil[word=<img src=x onerror=document.title=1>]"


@pytest.fixture(scope="module")
def boards() -> list[tuple[Leaderboard, str]]:
    def board(records: list[Any], name: str) -> Leaderboard:
        counted = [
            replace(one, suite=name, curve=curve(0.3, one.attacked.value), cost=COST) if one.attacked else one
            for one in records
        ]
        return scored([replace(one, suite=name) for one in counted])

    first = [*suite(), *sweep("mask", (0.78,) * 5, utility=0.7), *sweep(EVIL, (0.7,) * 5, utility=0.72)]
    return [(board(first, "first"), "nftbench run first"), (board(suite(), "second"), "nftbench run second")]


@pytest.fixture
def opened(browser: Any, boards: list[tuple[Leaderboard, str]], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of so many boards; in the end the console must be empty and nothing have been asked for."""

    path = tmp_path / "index.html"

    def opened(count: int = 1, width: int = 1280, scheme: str = "light") -> Any:
        path.write_text(web.text(boards[:count]), encoding="utf-8")
        return chromium.show(browser, path, width, scheme)

    yield opened
    assert browser.get_log("browser") == []
    assert chromium.loaded(browser) == {path.as_uri()}
    assert browser.title != "1"


def rows(page: Any) -> list[str]:
    """The specifications of the rows that the ranking shows."""
    script = "return [...document.querySelectorAll('.ranking tbody tr[data-row]')].map((row) => row.dataset.row)"
    found: list[str] = page.execute_script(script)
    return found


def one(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def point(page: Any, row: str) -> tuple[float, float]:
    """Where a row's point stands, from the middle of the frontier."""
    script = """
    const place = document.querySelector('.frontier'), chart = echarts.getInstanceByDom(place);
    const panel = JSON.parse(document.querySelector('script.data').textContent).frontier[0];
    const at = panel.points.find((one) => one.row === arguments[0]).at;
    const [x, y] = chart.convertToPixel({xAxisIndex: 0, yAxisIndex: 0}, at);
    return [x - place.clientWidth / 2, y - place.clientHeight / 2];
    """
    x, y = page.execute_script(script, row)
    return x, y


def move(page: Any, row: str) -> Any:
    from selenium.webdriver.common.action_chains import ActionChains

    place = one(page, ".frontier")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", place)
    return ActionChains(page).move_to_element_with_offset(place, *map(int, point(page, row)))


def wait_until(page: Any, holds: Callable[[], bool]) -> None:
    """DataTables sorts after the event; a condition that never holds raises a TimeoutException."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 5).until(lambda _: holds())


def test_a_column_sorts_by_its_numbers_with_the_keyboard_too(opened: Callable[..., Any]) -> None:
    page = opened()
    before = rows(page)
    assert len(before) == 3
    [head] = [each for each in page.find_elements("css selector", ".ranking thead th") if "utility %" in each.text]
    head.click()
    wait_until(page, lambda: head.get_attribute("aria-sort") == "ascending")
    least = rows(page)
    kept = [
        float(each.text.split()[0]) for each in page.find_elements("css selector", ".ranking tbody td:nth-child(5)")
    ]
    assert kept == sorted(kept)
    button = head.find_element("css selector", "[role=button], button")
    button.send_keys("\ue007")
    wait_until(page, lambda: head.get_attribute("aria-sort") == "descending")
    assert rows(page) == least[::-1]


def test_rows_are_filtered_and_columns_hidden(opened: Callable[..., Any]) -> None:
    page = opened()
    one(page, ".tools input[type=search]").send_keys("mask")
    assert rows(page) == ["mask"]
    one(page, ".columns summary").click()
    [box] = [each for each in page.find_elements("css selector", ".columns label") if each.text == "badge"]
    heads = ".ranking thead th"
    assert "badge" in one(page, ".ranking thead").text
    box.click()
    assert "badge" not in [each.text for each in page.find_elements("css selector", heads)]


def test_a_point_says_its_row_and_a_click_shows_it_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    move(page, EVIL).perform()
    wait(page, lambda: "suppression" in one(page, ".tip").text)
    assert not page.find_elements("css selector", ".tip img")
    move(page, "mask").click().perform()
    wait(page, lambda: rows(page) == ["mask"])
    assert "Only mask is shown" in one(page, ".filtered").text
    one(page, ".filtered button").click()
    assert len(rows(page)) == 3
    assert not one(page, ".filtered").is_displayed()


def wait(page: Any, holds: Callable[[], bool]) -> None:
    from selenium.common.exceptions import NoSuchElementException
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 5, ignored_exceptions=[NoSuchElementException]).until(lambda _: holds())


def test_a_link_opens_the_section_of_a_defense(opened: Callable[..., Any]) -> None:
    page = opened()
    one(page, '.ranking tr[data-row="mask"] a').click()
    wait(page, lambda: one(page, 'details.defense[data-row="mask"]').get_attribute("open") is not None)
    assert "full" in one(page, 'details.defense[data-row="mask"]').text


def test_tabs_show_one_suite_at_a_time(opened: Callable[..., Any]) -> None:
    page = opened(2)
    assert [one(page, f"#board-{index}").is_displayed() for index in (0, 1)] == [True, False]
    one(page, "#board-0-tab").send_keys("\ue014")
    assert page.switch_to.active_element.get_attribute("id") == "board-1-tab"
    assert [one(page, f"#board-{index}").is_displayed() for index in (0, 1)] == [False, True]
    assert one(page, "#board-1 .frontier svg").is_displayed()


def test_the_first_stop_of_the_keyboard_skips_to_the_results(opened: Callable[..., Any]) -> None:
    page = opened()
    one(page, "body").send_keys("\ue004")
    assert page.switch_to.active_element.get_attribute("class") == "skip"
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_page(opened: Callable[..., Any], scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, AA) of text, soft text, links and chips."""
    page = opened(scheme=scheme)
    colors = {
        name: page.execute_script(f"return getComputedStyle(document.documentElement).getPropertyValue('--{name}')")
        for name in ("page", "text", "soft", "link", "good", "good-on", "bad", "bad-on", "unsure", "unsure-on")
    }
    assert (chromium.luminance(colors["page"]) > 0.5) == (scheme == "light")
    pairs = [("text", "page"), ("soft", "page"), ("link", "page"), *((x, f"{x}-on") for x in ("good", "bad", "unsure"))]
    assert all(chromium.contrast(colors[front], colors[back]) >= 4.5 for front, back in pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_rows_stand_out_and_are_those_of_the_figures(opened: Callable[..., Any], scheme: str) -> None:
    """Contrast of at least 3, which WCAG 2.2 (1.4.11) asks of pictures."""
    page = opened(scheme=scheme)
    back = page.execute_script("return getComputedStyle(document.documentElement).getPropertyValue('--page')")
    every = {styles.color_of(name) for name in (*styles.COLORS, *"abcdefghijklmnop")} - {styles.INK}
    assert every == {*styles.OTHERS}
    assert [color for color in every if chromium.contrast(color, back) < 3] == []
    series = page.execute_script(
        "const chart = echarts.getInstanceByDom(document.querySelector('.frontier'));"
        "const shown = (data) => data.map((one) => [one.row, one.itemStyle && one.itemStyle.color]);"
        "return chart.getOption().series.map(({name, color, data}) => ({name, color, drawn: shown(data)}))"
    )
    drawn = {one["name"]: one for one in series}
    assert dict(drawn["defense"]["drawn"])["mask"] == styles.color_of("mask")
    assert (chromium.luminance(drawn["undefended"]["color"]) > 0.5) == (scheme == "dark")


def test_a_phone_scrolls_tables_and_not_the_page(opened: Callable[..., Any]) -> None:
    page = opened(width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
