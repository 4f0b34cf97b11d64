"""The pictures of the studio and of the web page in docs/images: `python docs/screenshots.py`.

It needs the studio, Playwright and a Chromium; the web page's onnxruntime-web is downloaded once.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "docs" / "images"
MODEL, IMAGE, OTHER = "models/shapes.onnx", "models/circle_and_star.png", "models/square_and_ring.png"
DESKTOP, TALL, PHONE = ({"width": w, "height": h} for w, h in ((1280, 880), (1280, 1400), (360, 1400)))


def main() -> None:
    """Make all pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        with studio() as address:
            shoot(browser, address, "studio_desktop", DESKTOP, compare_methods)
            shoot(browser, address, "studio_phone", PHONE, wait_for_explanation)
            shoot(browser, address, "studio_dark", TALL, look_at_layers, color_scheme="dark")
        with web() as address:
            shoot(browser, address, "web_desktop", DESKTOP, choose_image)
            shoot(browser, address, "web_phone", PHONE, choose_image)
        browser.close()


def shoot(browser: Browser, address: str, name: str, viewport: Any, work: Any, **options: Any) -> None:
    """Open a page, do some work on it and save what is seen."""
    page = browser.new_page(viewport=viewport, **options)
    page.goto(address)
    work(page)
    page.mouse.move(0, 0)
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.screenshot(path=IMAGES / f"{name}.jpg", type="jpeg", quality=80)
    page.close()


def wait_for_explanation(page: Page) -> None:
    """Until the pictures are there."""
    page.locator("#results[aria-busy='false']").wait_for()
    page.wait_for_load_state("networkidle")


def compare_methods(page: Page) -> None:
    """Two methods of the circle side by side."""
    wait_for_explanation(page)
    page.locator("#methods-box summary").click()
    page.get_by_label("LayerCAM", exact=True).check()
    wait_for_explanation(page)
    page.locator("#methods-box summary").click()
    page.get_by_role("button", name="circle 99.6 %").click()
    wait_for_explanation(page)


def look_at_layers(page: Page) -> None:
    """What each layer shows."""
    wait_for_explanation(page)
    page.locator("#layers-box summary").click()
    wait_for_explanation(page)
    page.locator("#layers li:last-child img:not([hidden])").wait_for()


def choose_image(page: Page) -> None:
    """The web page with an image."""
    page.set_input_files("#file", REPOSITORY / IMAGE)
    page.locator("#results:not([hidden])[aria-busy='false']").wait_for()


@contextlib.contextmanager
def studio() -> Iterator[str]:
    """The studio of the demo model."""
    words = ["studio", MODEL, IMAGE, OTHER, "--probabilities", "sigmoid"]
    command = [sys.executable, "-m", "onnx_gradcam", *words]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None  # noqa: S101
        yield process.stdout.readline().split()[-1]
        process.terminate()


@contextlib.contextmanager
def web() -> Iterator[str]:
    """The web page of the demo model on a plain server."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["web", MODEL, "-o", f"{folder}/site", "--probabilities", "sigmoid"]
        subprocess.run([sys.executable, "-m", "onnx_gradcam", *words], cwd=REPOSITORY, check=True)  # noqa: S603
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=f"{folder}/site")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}/"
            server.shutdown()


if __name__ == "__main__":
    main()
