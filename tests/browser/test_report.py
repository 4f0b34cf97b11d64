"""The page of a comparison in a real browser: seen, read aloud, worked by keyboard, and attacked by names."""

from __future__ import annotations

import itertools

import pytest
from support.browser_pages import CONTRAST, DESKTOP, PHONE
from support.comparisons import EVIL, page, result

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A page with thirty images, names that attack it, long names, blank and native maps."""
    results = [result(f"photos/{shift}.png", shift / 4) for shift in range(26)]
    results += [result(EVIL, 6, label=EVIL), result("photos/" + "very_long_name_" * 12 + ".png", 6.5)]
    results += [result("photos/blank.png", 3, blank=True), result("photos/native.png", 6, native=True)]
    path = tmp_path_factory.mktemp("report") / "page.html"
    path.write_text(page(results, failed=[("photos/bad.png", EVIL)], limit=0.9), "utf-8")
    return path.as_uri()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def tab(request, chromium, address):
    """The page, opened; whatever it complained about or asked the network for fails the test."""
    tab = chromium.new_page(viewport=request.param)
    heard, asked = [], []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda sent: asked.append(sent.url[:60]))
    tab.goto(address)
    yield tab
    tab.close()
    assert heard == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_every_image_is_shown_side_by_side(tab):
    sizes = tab.eval_on_selector_all("img", "all => all.map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 24 * 3
    assert all(complete and natural == 320 and shown > 100 for complete, natural, shown in sizes)
    left, middle, right = (figure.bounding_box() for figure in tab.locator("article").first.locator("figure").all())
    assert left["y"] == middle["y"]
    assert middle["x"] >= left["x"] + left["width"]
    if tab.viewport_size == DESKTOP:
        assert right["y"] == left["y"]


def test_the_page_fits_the_width(tab):
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]


def test_text_can_be_read(tab):
    found = tab.evaluate(CONTRAST)
    assert len(found) > 500
    assert min(f["contrast"] for f in found) >= 4.5
    assert min(f["size"] for f in found) >= 13


def test_the_style_is_applied_under_the_policy(tab):
    assert tab.eval_on_selector("main", "e => getComputedStyle(e).maxWidth") == "1248px"


def test_names_cannot_run(tab):
    assert tab.title() == "How far the models agree"
    assert tab.locator("script").count() == 0
    card = tab.locator("article", has_text="document.title='owned'")
    assert EVIL in card.get_by_role("heading").inner_text()
    assert tab.locator("[onerror]").count() == 0


def test_an_injected_script_is_blocked_by_the_policy(chromium, address):
    """What escaping might miss one day, the policy still stops."""
    tab = chromium.new_page()
    heard = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.goto(address)
    tab.evaluate(
        """() => { const s = document.createElement('script'); s.textContent = "document.title = 'owned'";
        document.body.append(s); const i = document.createElement('img'); i.src = 'http://127.0.0.1:9/x.png';
        document.body.append(i); }"""
    )
    tab.wait_for_timeout(200)
    assert tab.title() == "How far the models agree"
    tab.close()
    assert len(heard) == 2
    assert all("Content Security Policy" in text for text in heard)


def test_a_screen_reader_finds_its_way(tab):
    levels = tab.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert tab.get_by_role("main").count() == 1
    for name in ("Models", "b against a", "All images", "Images left out"):
        assert tab.get_by_role("table", name=name, exact=True).count() == 1
        assert tab.get_by_role("region", name=name, exact=True).count() == 1
    assert tab.get_by_role("columnheader", name="Pearson").count() == 1
    assert tab.get_by_role("rowheader", name="Pearson").count() == 1
    assert tab.get_by_role("img", name="Heatmap of b over native.png: hottest").count() == 1
    assert tab.get_by_role("img", name="Heatmap of b for tabby over blank.png: blank").count() == 1
    assert tab.get_by_role("article").count() == 24


def test_the_keyboard_reaches_and_scrolls_everything(tab):
    table = tab.get_by_role("region", name="All images", exact=True)
    names = []
    for _ in range(8):
        tab.keyboard.press("Tab")
        names.append(
            tab.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.tagName")
        )
        if names[-1] == "All images":
            break
    assert names == ["Models", "b against a", "All images"]
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    if table.evaluate("e => e.scrollWidth > e.clientWidth"):
        tab.keyboard.press("ArrowRight")
        tab.wait_for_timeout(300)
        assert table.evaluate("e => e.scrollLeft") > 0
    tab.keyboard.press("Tab")
    goal = tab.evaluate("document.activeElement.getAttribute('href')")
    tab.keyboard.press("Enter")
    tab.wait_for_timeout(100)
    top = tab.locator(f"[id='{goal[1:]}']").bounding_box()["y"]
    assert -1 < top < tab.viewport_size["height"] / 2


def test_both_classes_are_shown_where_they_differ(tab):
    card = tab.locator("article", has_text="native.png")
    assert card.get_by_text("instead of").count() == 0
    cards = tab.locator("article dd", has_text="instead of")
    assert cards.count() > 10
    assert cards.first.inner_text() == "tiger cat instead of tabby"


def test_the_largest_disagreement_comes_first(tab):
    values = tab.eval_on_selector_all("article", "all => all.map(a => Number(a.querySelector('dd').textContent))")
    assert values == sorted(values)
