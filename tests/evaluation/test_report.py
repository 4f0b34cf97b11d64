"""The page: complete, bounded, and safe whatever the names in it are."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from support.comparisons import EVIL, comparison, page, result

from onnx_gradcam.evaluation import report
from onnx_gradcam.evaluation.similarity import METRICS
from onnx_gradcam.images.decoding import Placement

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that every element is closed, and collects what is there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_worst_first_with_all_numbers():
    results = [result(f"{shift}.png", shift) for shift in (1, 5, 0, 3)]
    text = page(results)
    parsed = Page(text)
    assert [e["id"] for e in parsed.all("article")] == ["p1", "p3", "p0", "p2"]
    rows = re.findall(r"<tr>(.*?)</tr>", text.split('id="all"')[1])[1:]
    assert [re.search(r"(\d)\.png", row).group(1) for row in rows] == ["5", "3", "1", "0"]
    numbers = re.findall(r'<td class="number">([^<]*)</td>', rows[0])
    expected = results[1].agreements[0].numbers
    assert len(numbers) == len(METRICS)
    assert float(numbers[0]) == pytest.approx(expected["pearson"], abs=5e-4)
    assert float(numbers[5]) == pytest.approx(expected["difference"], abs=5e-4)
    assert "2 of 4" in text


def test_images_lie_inside_and_say_what_they_show():
    parsed = Page(page([result("photo.png", 4)]))
    images = parsed.all("img")
    assert [p["alt"] for p in images] == [
        "The image photo.png",
        "Heatmap of a for tabby over photo.png: hottest 28% from the left and 54% from the top",
        "Heatmap of b for tabby over photo.png: hottest 53% from the left and 54% from the top",
    ]
    for p in images:
        kind, data = p["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (int(p["height"]), int(p["width"]), 3) == (240, 320, 3)


def test_names_are_text_wherever_they_stand():
    text = page([result(EVIL, 2, label=EVIL)], sides=(EVIL, "b"), failed=[(EVIL, EVIL)], limit=0.5)
    parsed = Page(text)
    known = "html head meta title style body main h1 h2 h3 p div table thead tbody tr th td a article figure img small "
    known += "figcaption strong dl dt dd footer bdi span"
    assert {tag for tag, _ in parsed.elements} <= set(known.split())
    assert not parsed.all("script")
    assert not [a for _, attributes in parsed.elements for a in attributes if a.startswith("on")]
    # A name stands in an element of its own, so that its writing direction turns nothing else around.
    assert {part for part in parsed.text if EVIL in part} == {EVIL, f"{EVIL}.onnx"}
    assert any(EVIL in p["alt"] for p in parsed.all("img"))


def test_the_policy_allows_nothing_but_what_is_inside():
    text = page([result("a.png", 1)])
    parsed = Page(text)
    (policy,) = [m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "http:" not in text
    assert "https:" not in text
    assert not [a for _, attributes in parsed.elements for a in attributes if a == "style"]


def test_tables_have_headers_and_scroll_by_keyboard():
    parsed = Page(page([result("a.png", 1)]))
    assert {h["scope"] for h in parsed.all("th")} == {"col", "row"}
    regions = [d for d in parsed.all("div") if d.get("class") == "wide"]
    assert len(regions) == len(parsed.all("table")) == 3
    assert all(r["role"] == "region" and r["tabindex"] == "0" and r["aria-label"] for r in regions)
    assert parsed.all("html")[0]["lang"] == "en"


def test_a_page_is_bounded():
    """The worst 24 of many images are shown, the table lists all, and the other images' pixels are not kept."""
    shifts = np.random.default_rng(0).permutation(200) / 80
    results = comparison([result(f"{i}.png", shift) for i, shift in enumerate(shifts)])
    for _ in results:
        assert len(results._shown) <= 24
        assert all(small.image.shape[:2] == (240, 320) for _, _, small in results._shown)
    text = results.html()
    parsed = Page(text)
    shown = [int(e["id"][1:]) for e in parsed.all("article")]
    assert len(shown) == 24
    assert set(shown) == set(np.argsort(-shifts)[:24].tolist())
    assert len(re.findall(r"<tr>", text.split('id="all"')[1])) == 201
    assert len(parsed.all("a")) == 24
    assert len(text) < 3e6


def test_only_what_is_shown_is_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "overlay", lambda image, heatmap: drawn.append(heatmap) or image)
    results = comparison([result(f"{i}.png", 3 - 3 * i / 40) for i in range(40)])
    assert [number for number, _ in results.shown] == list(range(24))
    assert drawn == []
    results.html()
    assert len(drawn) == 2 * 24


def test_margins_that_the_model_did_not_see_are_not_tinted():
    one = result("a.png", 1)
    laid = [replace(half, placement=Placement((20, 0, 60, 60), 60, 80)) for half in one.laid]
    parsed = Page(page([replace(one, laid=laid)]))
    for p in parsed.all("img")[1:]:
        data = base64.b64decode(p["src"].split(",", 1)[1])
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(pixels[:, :70].astype(int) - 90).max() < 3
        assert np.abs(pixels[:, 90:230].astype(int) - 90).max() > 20


def test_blank_and_native_maps_are_named():
    text = page([result("a.png", 2, blank=True, native=True)])
    assert "Heatmap of b over a.png: blank" in text
    assert '<dt>blank</dt><dd class="bad">this heatmap</dd>' in text
    for word in ("NaN", "nan<", "inf<", "None"):
        assert word not in text


def test_the_limit_is_held_against_the_mean():
    good, bad = page([result("a.png", 0)], limit=0.9), page([result("a.png", 5)], limit=0.9)
    assert '<span class="good">at least 0.9</span>' in good
    assert '<span class="bad">below 0.9</span>' in bad
    assert "0.9</span>" not in page([result("a.png", 0)])
    # Two of three agree fully: the median is 1, the mean is not.
    assert '<span class="bad">below 0.9</span>' in page([result(f"{s}.png", s) for s in (0, 0, 6)], limit=0.9)


def test_paths_are_shown_less_their_folder():
    inside = Page(page([result("/deep/photos/x/a.png", 1), result("/deep/photos/b.png", 1)]))
    assert {"x/a.png", "b.png"} <= set(inside.text)
    apart = Page(page([result("/deep/photos/x/a.png", 1), result("b.png", 1)]))
    assert {"/deep/photos/x/a.png", "b.png"} <= set(apart.text)


def test_both_classes_are_shown_where_they_differ():
    text = page([result("a.png", 4)])
    assert '<dd class="bad"><bdi>tiger cat</bdi> instead of <bdi>tabby</bdi></dd>' in text
    assert '<td class="bad">no: <bdi>tiger cat</bdi></td>' in text
    assert "tiger cat" not in page([result("a.png", 1)])


def test_a_page_without_any_result_says_so():
    text = page([], failed=[("a.png", "'a.png' is not an image")])
    assert "No image could be compared." in text
    assert "0 images compared, 1 left out." in "".join(Page(text).text)
