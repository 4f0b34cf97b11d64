"""A Chromium for the pages of this package."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=["--enable-unsafe-swiftshader"])
        except api.Error:
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install chromium")
        yield browser
        browser.close()
