"""A headless Chromium for tests of pages. Where it is missing, they are skipped (setup.sh installs it)."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",  # root (as in containers) cannot use the sandbox; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers give /dev/shm only 64 MB
    "--no-first-run",
    "--no-proxy-server",  # the pages are on this machine
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WINDOW = (1280, 900)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """One Chromium for the whole session, as a selenium WebDriver. Tests use the fixture `browser`."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Give the paths of both programs, so that selenium does not search for them or download them.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_program))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium) -> Iterator:
    """A selenium WebDriver on an empty page: normal window size, light colours, empty logs."""
    chromium.get("about:blank")
    chromium.set_window_size(*WINDOW)
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chromium.get_log("browser")
    chromium.get_log("performance")
    yield chromium


def console_messages(browser) -> list[str]:
    """The console messages since the last call, loading errors included, each as ``LEVEL message``."""
    return [f"{entry['level']} {entry['message']}" for entry in browser.get_log("browser")]


def console_errors(browser) -> list[str]:
    """The errors among `console_messages`."""
    return [message for message in console_messages(browser) if message.startswith("SEVERE")]


def requested_urls(browser) -> list[str]:
    """The URLs the page requested since the last call, in order, without ``data:`` URLs."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def prefer_dark(browser) -> None:
    """Tell pages that the user prefers dark colours, until the next test."""
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})


def resize(browser, width: int, height: int = 900) -> None:
    """Give the page this many CSS pixels, also fewer than the window of headless Chromium can have (500)."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < WINDOW[0]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def screenshot(browser, path: Path, height: int | None = None) -> np.ndarray:
    """Write a PNG of the page, all of it or the first ``height`` pixels, and return it, (height, width, channels)."""
    width, all_of_it = browser.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height or all_of_it, all_of_it), "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(taken["data"]))
    return matplotlib.image.imread(path)
