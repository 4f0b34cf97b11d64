"""The page of a model in a browser, worked as its visitors do."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

LOOK = """() => { window.seen = null; document.addEventListener('explained', ({ detail: d }) => {
  const bytes = new Uint8Array(d.heatmap.values.buffer);
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  window.seen = { index: d.index, scores: [...d.scores], shape: [d.heatmap.height, d.heatmap.width],
    heatmap: btoa(text), chosen: d.chosen.key, boxes: d.boxes }; }); }"""

PIXELS = """async name => {
  const { decode } = await import(new URL('decoding.js', location.href).href);
  const { data, height, width } = await decode(document.getElementById('file').files[0]);
  let text = '';
  for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
  return { data: btoa(text), height, width };
}"""


@contextlib.contextmanager
def launched(*switches: str) -> Iterator[Any]:
    """A headless Chromium, the system's or Playwright's; where there is none, the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=list(switches))
        except api.Error:
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install chromium")
        yield browser
        browser.close()


class Page:
    """A tab with the page; what the browser complained about and asked the network for is kept.

    Attributes:
        heard: messages of the console, errors and dialogs.
        asked: addresses that were requested.
    """

    def __init__(self, chromium, address: str, *, viewport=None, script: str = "", before=None) -> None:
        self.tab = chromium.new_page(viewport=viewport or {"width": 1280, "height": 900})
        self.heard: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self._hear(message.text))
        self.tab.on("pageerror", lambda error: self.heard.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.heard.append(dialog.message), dialog.dismiss()))
        self.tab.on("request", lambda sent: self.asked.append(sent.url))
        if script:
            self.tab.add_init_script(script)
        if before:
            before(self.tab)
        self.tab.goto(address)
        self.tab.evaluate(LOOK)

    def _hear(self, text: str) -> None:
        if "willReadFrequently" not in text:  # about the tests' own reading of the canvas
            self.heard.append(text)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.tab.close()

    def poll(self, code: str, argument=None, seconds: float = 20):
        """Evaluate until the result is truthy (the policy forbids `wait_for_function`)."""
        for _ in range(int(seconds * 20)):
            found = self.tab.evaluate(code, argument)
            if found:
                return found
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"never came: {code}; the page says {self.tab.inner_text('main')!r}")

    def ready(self) -> None:
        self.poll("() => document.getElementById('status').textContent === 'The model is ready.'")

    def choose(self, *files) -> dict:
        """Choose an image, by path or as (name, bytes); what the page then explains."""
        self.tab.evaluate("() => { window.seen = null; }")
        given = [{"name": f[0], "mimeType": "", "buffer": f[1]} if isinstance(f, tuple) else str(f) for f in files]
        self.tab.set_input_files("#file", [])  # the same image again is no change
        self.tab.set_input_files("#file", given)
        return self.seen()

    def click(self, name: str) -> dict:
        self.tab.evaluate("() => { window.seen = null; }")
        self.tab.get_by_role("button", name=name).click()
        return self.seen()

    def click_box(self, n: int, where: str = "#boxes .hit") -> dict:
        """Click the middle of a box of a detector in the image, or its row in the list."""
        self.tab.evaluate("() => { window.seen = null; }")
        self.tab.locator(f"{where}[data-index='{n}']").click()
        return self.seen()

    def finds_nothing(self, name: str, data: bytes) -> str:
        """What the page of a detector says of an image without boxes."""
        self.tab.set_input_files("#file", [])
        self.tab.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})
        code = "() => { const t = document.getElementById('status').textContent; return t.startsWith('Nothing') && t; }"
        return self.poll(code)

    def seen(self) -> dict:
        """What is explained next: the class, the scores, the heatmap as an array; of a detector, its boxes too."""
        code = "() => window.seen || !document.getElementById('error').hidden"
        assert self.poll(code) is not True, self.error()
        seen = self.tab.evaluate("() => window.seen")
        seen["heatmap"] = np.frombuffer(base64.b64decode(seen["heatmap"]), np.float32).reshape(seen["shape"])
        return seen

    def refuses(self, name: str, data: bytes) -> str:
        self.tab.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})
        return self.error()

    def error(self) -> str:
        return self.poll(
            "() => !document.getElementById('error').hidden && document.getElementById('error').textContent"
        )

    def pixels(self) -> np.ndarray:
        """The chosen image as this browser decodes it."""
        found = self.tab.evaluate(PIXELS)
        return np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(found["height"], found["width"], 3)

    def facts(self) -> dict:
        return json.loads(self.tab.evaluate("async () => (await fetch('site.json')).text()"))

    def canvas(self) -> np.ndarray:
        """What is shown, RGB."""
        code = """() => { const c = document.getElementById('view');
          const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
          let text = '';
          for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
          return [c.height, c.width, btoa(text)]; }"""
        height, width, data = self.tab.evaluate(code)
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[:, :, :3]
