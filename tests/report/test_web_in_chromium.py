"""The page in a real Chromium, from disk: sort, filter, hover, click, open, tabs, dark mode, and no network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nftbench.report import styles, web
from nftbench.scoring import Leaderboard
from nftbench.scoring.budget_curve import BudgetCurve
from nftbench.scoring.intervals import Interval
from nftbench.scoring.scores import Flag
from tests import chromium
from tests.factories import COST, curve, scored, scratch, suite, sweep
from tests.scoring import drawn
from tests.scoring.drawn import Truth, kept

pytestmark = chromium.NEEDED
TRUTHS = {**drawn.CROWD, "wreck": Truth(1.0, kept(0.1))}
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


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a board with a ladder of trivial defenses, rows that stand close together, and budget curves."""
    board = drawn.board(drawn.records(TRUTHS, np.random.default_rng(5)))
    flops = tuple(10.0**power for power in range(3, 12))
    reached = tuple(Interval(30.0 + index) for index in range(len(flops)))
    budgets = tuple(BudgetCurve(name, flops, reached) for name in ("mask", "oracle", "none", "scratch"))
    board = replace(board, budgets=budgets)
    path = tmp_path_factory.mktemp("crowd") / "index.html"
    path.write_text(web.text([(board, "nftbench run crowd")]), encoding="utf-8")
    return path


@pytest.fixture
def crowded(browser: Any, crowd: Path) -> Iterator[Any]:
    """That page, opened; in the end the console must be empty."""
    yield chromium.show(browser, crowd)
    assert browser.get_log("browser") == []


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
    const at = panel.views[0].points.find((one) => one.row === arguments[0]).at;
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
    shown = {one["name"]: one for one in series(page, ".frontier")}
    assert shown["mask"]["data"][0]["itemStyle"]["color"] == styles.color_of("mask")
    star = page.execute_script(
        "const ink = getComputedStyle(document.querySelector('.frontier svg path[stroke=\"var(--text)\"]')).stroke;"
        "return '#' + ink.match(/\\d+/g).map((part) => Number(part).toString(16).padStart(2, '0')).join('')"
    )
    assert (chromium.luminance(star) > 0.5) == (scheme == "dark")


def series(page: Any, selector: str) -> list[dict[str, Any]]:
    """What a picture draws, as ECharts was told."""
    script = "return echarts.getInstanceByDom(document.querySelector(arguments[0])).getOption().series"
    found: list[dict[str, Any]] = page.execute_script(script, selector)
    return found


def keys(page: Any, selector: str) -> dict[str, dict[str, Any]]:
    """The legend above a picture: by name or words the mark, the dash and the colours of its sample."""
    script = """
    const list = document.querySelector(arguments[0]).closest("figure").querySelector(".legend");
    return Object.fromEntries([...list.querySelectorAll(".key")].map((one) => [one.textContent, {
      paths: [...one.querySelectorAll("path")].map((path) => path.getAttribute("d")),
      dash: one.querySelector("[stroke-dasharray]")?.getAttribute("stroke-dasharray"),
      inks: [...one.querySelectorAll("path")].map((path) => path.getAttribute("stroke")),
    }]))
    """
    found: dict[str, dict[str, Any]] = page.execute_script(script, selector)
    return found


def test_the_legend_shows_each_line_and_each_row_as_it_is_drawn(crowded: Any) -> None:
    shown, told = series(crowded, ".frontier"), keys(crowded, ".frontier")
    for family in drawn.DOSES:
        line, dots = (one for one in shown if one["name"] == f"trivial: {family}" and not one.get("areaStyle"))
        key = told[f"trivial: {family}"]
        assert f"path://{key['paths'][-1]}" == dots["symbol"]
        assert key["dash"] == dashes(line["lineStyle"]["type"])
    rows = [one for one in shown if one["name"] in {label for label in told if not label.startswith("trivial")}]
    assert len(rows) == len(TRUTHS)
    for row in rows:
        assert f"path://{told[row['name']]['paths'][-1]}" == row["data"][0]["symbol"]
        assert told[row["name"]]["inks"][-1] == row["data"][0]["itemStyle"]["borderColor"]


def dashes(kind: Any) -> str:
    return "none" if kind == "solid" else " ".join(f"{one:g}" for one in kind)


def test_the_legend_of_the_budget_has_a_mark_where_the_line_has_marks(crowded: Any) -> None:
    shown, told = series(crowded, ".budget"), keys(crowded, ".budget")
    assert {one["name"] for one in shown} == told.keys()
    marked = {one["name"]: {item["symbol"] for item in one["data"]} - {"none"} for one in shown}
    assert {name: {f"path://{path}" for path in key["paths"][1:]} for name, key in told.items()} == marked
    assert marked["mask"]
    assert not marked["none"]
    assert not marked["scratch"]
    assert {name: key["dash"] for name, key in told.items()} == {
        one["name"]: dashes(one["lineStyle"]["type"]) for one in shown
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_no_name_covers_a_line_a_mark_or_another_name(browser: Any, crowd: Path, width: int) -> None:
    page = chromium.show(browser, crowd, width)
    names, lines, marks = page.execute_script(
        """
        const place = document.querySelector(".frontier"), chart = echarts.getInstanceByDom(place);
        const [left, top] = [place.getBoundingClientRect().x, place.getBoundingClientRect().y];
        const view = JSON.parse(document.querySelector("script.data").textContent).frontier[0].views[0];
        const pixel = (at) => chart.convertToPixel({xAxisIndex: 0, yAxisIndex: 0}, at);
        const names = [...place.querySelectorAll("svg text")]
          .filter((one) => getComputedStyle(one).fontWeight === "600")
          .map((one) => one.getBoundingClientRect())
          .map((box) => [box.left - left, box.top - top + 2, box.right - left, box.bottom - top - 2]);
        const lines = view.curves.flatMap(({line}) => line.slice(1).map((at, index) => [line[index], at].map(pixel)));
        for (const one of view.points) {
          lines.push([pixel([one.at[0], one.foot]), pixel(one.at)]);
          lines.push([pixel([one.kept[0], one.at[1]]), pixel([one.kept[1], one.at[1]])]);
          lines.push([pixel([one.at[0], one.taken[0]]), pixel([one.at[0], one.taken[1]])]);
        }
        return [names, lines, view.points.map((one) => pixel(one.at))];
        """
    )
    assert len(names) >= 3
    assert not [pair for pair in itertools.combinations(names, 2) if overlap(*pair)]
    along = [
        (x1 + share * (x2 - x1), y1 + share * (y2 - y1))
        for (x1, y1), (x2, y2) in lines
        for share in np.linspace(0, 1, 400)
    ]
    assert not [at for at in (*along, *map(tuple, marks)) for box in names if within(at, box)]


def overlap(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def within(at: tuple[float, float], box: list[float]) -> bool:
    return box[0] < at[0] < box[2] and box[1] < at[1] < box[3]


def test_the_excess_is_a_thick_bar_on_the_metric_that_counts(crowded: Any) -> None:
    from selenium.webdriver.support.ui import Select

    def thick() -> set[str]:
        bars = {one["name"]: one["markLine"]["data"] for one in series(crowded, ".frontier") if one.get("markLine")}
        return {name for name, ends in bars.items() if any(start["lineStyle"]["width"] > 2 for start, _ in ends)}

    assert "destroyer" not in thick()
    assert {"oracle", "mask"} <= thick()
    choice = Select(one(crowded, ".metric select"))
    choice.select_by_visible_text(next(each.text for each in choice.options if each.text.startswith("tone")))
    assert thick() == {"destroyer"}


def test_a_row_is_hidden_with_the_keyboard_and_the_picture_fits_the_rest(crowded: Any) -> None:
    def least() -> float:
        script = "return echarts.getInstanceByDom(document.querySelector('.frontier')).getOption().xAxis[0].min"
        return float(crowded.execute_script(script))

    [key] = [each for each in crowded.find_elements("css selector", ".legend button") if each.text == "wreck"]
    before = least()
    key.send_keys("\ue007")
    assert key.get_attribute("aria-pressed") == "false"
    assert "wreck" not in {each["name"] for each in series(crowded, ".frontier")}
    assert least() > before
    key.send_keys("\ue007")
    assert key.get_attribute("aria-pressed") == "true"
    assert least() == before


def test_every_column_of_the_rankings_can_be_read_at_1300_pixels(browser: Any, tmp_path: Path) -> None:
    """With names as long as those of the published suites; the columns that are hidden at first are left out."""
    tasks = ("toy_agreement", "toy_topic")
    rows = ("condition_number", "dlr_lock[depth=1]", "dlr_lock[depth=2]", "none", "early_stop")
    found = [one for name in rows for one in sweep(name, (0.7, 0.72, 0.74, 0.71, 0.73), tasks=tasks)]
    board = scored([*found, *scratch([0.4] * 5, tasks)])
    doubts = tuple(Flag(name, "warn", "seen") for name in ("utility", "edge_elsewhere", "config"))
    scores = tuple(
        replace(one, flags=doubts if one.defense == "dlr_lock[depth=1]" else one.flags) for one in board.scores
    )
    path = tmp_path / "index.html"
    path.write_text(web.text([(replace(board, scores=scores), "nftbench run tiny")]), encoding="utf-8")
    page = chromium.show(browser, path, 1300)
    page.execute_script("document.querySelectorAll('details.fold').forEach((one) => { one.open = true; })")
    boxes = page.find_elements("css selector", "section[id$=ranking] .scroll, section[id$=knowledge] .scroll")
    widths = [(each.get_property("scrollWidth"), each.get_property("clientWidth")) for each in boxes]
    assert len(widths) >= 3
    assert [pair for pair in widths if pair[0] > pair[1]] == []
    assert "edge_elsewhere" in one(page, ".ranking").text


def test_a_screen_reader_hears_what_each_control_and_each_row_is(opened: Callable[..., Any]) -> None:
    """Every control and picture has a name, and every row of every table has a header."""
    page = opened()
    page.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "combobox", "checkbox", "searchbox", "image", "link", "table", "group", "rowheader"}
    nameless = [
        each["role"]["value"]
        for each in nodes
        if not each["ignored"] and each["role"]["value"] in roles and not each.get("name", {}).get("value")
    ]
    assert nameless == ["group"] * nameless.count("group")  # a fieldset of a closed list of columns
    script = """
    const headed = (row) => row.querySelector("th[scope=row], .chip");
    return [...document.querySelectorAll("tbody tr")].filter((row) => !headed(row)).map((row) => row.textContent)
    """
    assert page.execute_script(script) == []


def test_paper_shows_whole_pictures_on_white(browser: Any, crowd: Path) -> None:
    page = chromium.show(browser, crowd, 1280, "dark")
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    back = page.execute_script("return getComputedStyle(document.documentElement).getPropertyValue('--page')")
    assert chromium.luminance(back) > 0.9
    drawn_width, drawn_height, room = page.execute_script(
        "const box = document.querySelector('.frontier svg').getBoundingClientRect();"
        "return [box.width, box.height, document.querySelector('.frontier').getBoundingClientRect().width]"
    )
    assert 100 < drawn_width <= room
    assert drawn_height > 100


def test_a_phone_scrolls_tables_and_not_the_page(opened: Callable[..., Any]) -> None:
    page = opened(width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
