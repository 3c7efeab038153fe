"""A headless Chromium for tests, which opens pages from disk and says what they load and log.

A test module names its tests `pytestmark = chromium.NEEDED` and takes the fixture `browser`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with a chromedriver is installed"),
]
QUIET = (
    "--headless",
    "--no-sandbox",  # root cannot use it, and the page is our own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
INSIDE = ("data:", "chrome://", "chrome-untrusted://")
"""What the browser's own first page asks for, which may come late."""


def start(profile: Path) -> Iterator[Any]:
    """The browser, until the tests that share it end."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER, log_output=os.devnull))
    found.get("about:blank")  # leaves the browser's own first page, which goes on loading and logging
    yield found
    found.quit()


def show(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Any:
    """Open a file in a window of this width, with nothing left of what other pages logged; returns the browser."""
    scale = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", scale)
    asked = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}  # nothing moves while it is tried
    media = {"features": [{"name": name, "value": value} for name, value in asked.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    return browser


def loaded(browser: Any) -> set[str]:
    """Every address that was asked for since the last `show`, without what follows # or ?."""
    events = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"}
    return {url.partition("#")[0].partition("?")[0] for url in asked if not url.startswith(INSIDE)}


def contrast(front: str, back: str) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(front), luminance(back)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """The relative luminance of `#rgb` or `#rrggbb` (WCAG 2.2)."""
    digits = color.strip().removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
