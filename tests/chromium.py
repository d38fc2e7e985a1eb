"""A real Chromium without a window, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service as Driver


@contextmanager
def chromium(width: int = 1200, height: int = 1100) -> Iterator[Chrome]:
    """A browser of that size, in CSS pixels, that asks for nothing in the background."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium here: install chromium and chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server",
                     f"--window-size={width},{height}", "--disable-background-networking"):  # fmt: skip
        options.add_argument(argument)
    with Chrome(options=options, service=Driver(driver)) as opened:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        if width < 500:  # narrower than a window can be
            opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield opened
