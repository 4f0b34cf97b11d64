"""The studio in Chromium: worked by mouse and by keyboard, read aloud, on a phone, dark, and failing."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from support.browser_pages import CONTRAST, DESKTOP, PHONE
from support.comparisons import EVIL
from support.graphs import graph, placed_detector
from support.studio_server import running

from onnx_gradcam import Explainer, method_sheet
from onnx_gradcam.cli._options import flags
from onnx_gradcam.studio.workbench import Workbench

pytestmark = pytest.mark.browser

IMAGE = "circle_and_star.png"
BODY = "h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)"


@pytest.fixture(scope="module")
def shapes(repository):
    models = repository / "models"
    bench = Workbench(models / "shapes.onnx", [models / IMAGE], probabilities="sigmoid", spoken=flags)
    with running(bench) as studio:
        yield studio


class Tab:
    """A tab with the studio; what the browser complained about and asked elsewhere fails the test."""

    def __init__(self, chromium, studio, *, viewport=DESKTOP, **options) -> None:
        context = chromium.new_context(viewport=viewport, accept_downloads=True, **options)
        self.page = context.new_page()
        self.studio = studio
        self.heard: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.heard.append(message.text))
        self.page.on("pageerror", lambda error: self.heard.append(str(error)))
        self.page.on("request", lambda sent: self.asked.append(sent.url))
        self.page.goto(studio.address)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            assert self.heard == []
            own = (self.studio.address, "data:", "blob:")
            assert [url for url in self.asked if not url.startswith(own)] == []
        self.page.context.close()

    def settled(self) -> str:
        """What the status line says when nothing runs any more."""
        self.page.locator("#results[aria-busy='false']").wait_for(timeout=30_000)
        self.page.wait_for_load_state("networkidle")
        return self.page.inner_text("#status")

    def status(self, part: str) -> str:
        """The status line, once it has some words."""
        self.page.locator("#status", has_text=part).wait_for(timeout=30_000)
        return self.page.inner_text("#status")

    def refused(self, part: str) -> str:
        """The status line, once it says in these words what is wrong."""
        self.page.locator("#status[data-kind=error]", has_text=part).wait_for(timeout=30_000)
        return self.page.inner_text("#status")

    def changed(self, selector: str, before: str) -> str:
        """A text, once it is another one."""
        for _ in range(600):
            text = self.page.inner_text(selector)
            if text != before:
                return text
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{selector} still says {before!r}")

    def panels(self) -> list[str]:
        return self.page.locator("#panels figure:not(#alone) figcaption").all_inner_texts()


@pytest.fixture
def tab(chromium, shapes):
    with Tab(chromium, shapes) as tab:
        assert tab.settled() == "Grad-CAM of star >99.9 %: hottest at the centre."
        yield tab


def png(height: int = 8, width: int = 8) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), 99, np.uint8))[1].tobytes()


def dropped(page, name: str, data: bytes) -> None:
    """Drop a file on the page."""
    page.evaluate(
        """([name, bytes]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
        dispatchEvent(new DragEvent('drop', { dataTransfer: data })); }""",
        [name, list(data)],
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_width_and_can_be_read(chromium, shapes, scheme):
    for viewport in (DESKTOP, PHONE):
        with Tab(chromium, shapes, viewport=viewport, color_scheme=scheme) as tab:
            tab.settled()
            tab.page.locator("#layers-box summary").click()
            tab.page.locator("#methods-box summary").click()
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            found = [f for f in tab.page.evaluate(CONTRAST) if f["text"] != "Dark"]
            assert len(found) > 60
            assert min(f["contrast"] for f in found) >= 4.5, min(found, key=lambda f: f["contrast"])
            assert min(f["size"] for f in found) >= 13
            dark = tab.page.evaluate("getComputedStyle(document.documentElement).colorScheme")
            assert dark == scheme


def test_dark_is_chosen_and_kept(tab):
    tab.page.get_by_role("button", name="Dark", pressed=False).click()
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.page.reload()
    assert tab.page.get_by_role("button", name="Dark", pressed=True).count() == 1


def test_a_class_is_chosen_by_mouse_and_found_by_name(tab):
    page = tab.page
    page.get_by_role("button", name="circle 99.6 %").click()
    assert tab.status("circle 99.6").startswith("Grad-CAM of circle 99.6 %: hottest at the bottom right")
    assert page.get_by_role("button", name="circle 99.6 %", pressed=True).count() == 1
    page.get_by_label("Find a class").fill("SQ")
    assert page.locator("#classes .name").all_inner_texts() == ["square"]
    page.get_by_label("Find a class").fill("none such")
    assert page.inner_text("#more") == "No class matches."


def test_it_is_worked_by_keyboard_alone(tab):
    page = tab.page
    page.locator("#theme").focus()
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    places = ["file", "sample", "opacity", "colormap", "original", "beside", "save", "find", "preset", "preprocess"]
    assert [order.index(name) for name in places] == sorted(order.index(name) for name in places)
    page.locator("#find").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    tab.status("circle 99.6")
    tab.settled()
    assert page.evaluate("document.activeElement.dataset.index") == "0", "the focus stays on the class"
    page.locator("#methods-box summary").focus()
    page.keyboard.press("Enter")
    page.get_by_label("HiResCAM", exact=True).focus()
    page.keyboard.press("Space")
    page.locator("#panels figure", has_text="HiResCAM").wait_for()
    assert len(tab.panels()) == 2
    page.locator("#opacity").focus()
    page.keyboard.press("End")
    assert page.inner_text("#opacity-value") == "100 %"
    assert page.eval_on_selector_all(".heat", "all => all.map(e => e.style.opacity)") == ["1", "1"]


def test_it_works_on_a_phone(chromium, shapes):
    with Tab(chromium, shapes, viewport=PHONE, has_touch=True, is_mobile=True) as tab:
        page = tab.page
        tab.settled()
        page.get_by_role("button", name="circle 99.6 %").tap()
        tab.status("circle 99.6")
        page.locator("#methods-box summary").tap()
        page.get_by_label("HiResCAM", exact=True).tap()
        page.locator("#panels figure", has_text="HiResCAM").wait_for()
        heights = page.eval_on_selector_all(
            "button:not([hidden])", "all => all.map(b => b.clientHeight).filter(Boolean)"
        )
        assert min(heights) >= 36
        widths = page.eval_on_selector_all("#panels .original", "all => all.map(e => e.clientWidth)")
        assert min(widths) > 250, "one below the other"
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_screen_reader_finds_its_way(tab):
    page = tab.page
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for name in ("Image", "Heatmap", "Classes", "Method", "Preprocessing", "The same picture elsewhere"):
        assert page.get_by_role("region", name=name, exact=True).count() == 1
    text = f"Grad-CAM of star >99.9 %: hottest at the centre, over {IMAGE}"
    assert page.get_by_role("img", name=text).count() == 1
    for label in ("Opacity", "Colours", "Find a class", "Conventions of", "Image to input"):
        assert page.get_by_label(label).count() == 1, label
    unnamed = (
        "all => all.filter(e => !e.labels?.length && !e.textContent.trim() && !e.getAttribute('aria-label')).length"
    )
    assert page.eval_on_selector_all("#chooser button img", "all => all.every(e => e.alt)")
    assert page.eval_on_selector_all("input, select, textarea", unnamed) == 0


def test_the_original_is_toggled_and_beside(tab):
    page = tab.page
    opacity = "() => document.querySelector('.heat').style.opacity"
    assert page.evaluate(opacity) == "0.5"
    page.get_by_role("button", name="Show the original").click()
    assert page.evaluate(opacity) == "0"
    page.get_by_role("button", name="Show the original", pressed=True).click()
    assert page.evaluate(opacity) == "0.5"
    assert page.locator("#alone").is_visible()
    page.get_by_role("button", name="Original beside").click()
    assert page.locator("#alone").is_hidden()


def test_the_picture_that_is_saved_follows_the_look(tab, tmp_path, repository):
    page = tab.page
    page.locator("#colormap").select_option("viridis")
    page.locator("#opacity").fill("30")
    page.locator("#opacity").dispatch_event("change")
    page.locator("#command", has_text="--opacity 0.3").wait_for()
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "circle_and_star_gradcam.png"
    download.value.save_as(tmp_path / "saved.png")
    explanation = Explainer(repository / "models" / "shapes.onnx", method="gradcam")(repository / "models" / IMAGE)
    expected = method_sheet({"gradcam": explanation}, colormap="viridis", opacity=0.3).pixels[:, :, ::-1]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "saved.png")), expected)


def test_layers_show_what_they_see_and_are_chosen(tab):
    page = tab.page
    page.locator("#layers-box summary").click()
    page.locator("#layers li:last-child img:not([hidden])").wait_for(timeout=30_000)
    grids = page.locator("#layers small").all_inner_texts()
    assert grids[0] == "12x12, 64 channels, Relu"
    assert {text.split(",")[0] for text in grids} == {"12x12", "24x24", "48x48", "96x96"}
    pictures = page.eval_on_selector_all("#layers img", "all => new Set(all.map(e => e.src)).size")
    assert pictures >= 4
    page.get_by_role("button", name="features.5").click()
    tab.settled()
    assert page.inner_text("#layers-chosen") == "features.5 (24x24)"
    page.locator("#command", has_text="--layer").wait_for()
    page.get_by_label("Find a layer").fill("conv")
    few = page.locator("#layers li").count()
    page.get_by_label("Find a layer").fill("")
    page.get_by_label("all layers").check()
    assert page.locator("#layers li").count() > 10 > few >= 0


def test_the_preprocessing_is_chosen_and_shown(tab):
    page = tab.page
    before = page.inner_text("#seen-text")
    assert "3 x 96 x 96 float32" in before
    page.get_by_label("Image to input").select_option("none")
    after = tab.changed("#seen-text", before)
    assert float(after.split(" to ")[1].split(",")[0]) > 200
    page.get_by_label("Image to input").select_option("json")
    page.get_by_label("as this JSON object says").fill('{"size": [96, 96], "sise": 1}')
    page.get_by_role("button", name="Use it").click()
    assert tab.refused("sise").startswith("Unknown key 'sise'")
    page.get_by_label("as this JSON object says").fill("{")
    page.get_by_role("button", name="Use it").click()
    tab.refused("This is not JSON")
    page.get_by_label("as this JSON object says").fill('{"size": [96, 96], "scale": 0.5}')
    page.get_by_role("button", name="Use it").click()
    assert 100 < float(tab.changed("#seen-text", after).split(" to ")[1].split(",")[0]) <= 128
    page.locator("#command", has_text='--preprocess \'{"size": [96, 96], "scale": 0.5}\'').wait_for()


def test_a_preset_draws_in_its_own_colours(tab):
    page = tab.page
    page.get_by_label("Conventions of").select_option("keras-io")
    page.locator("#opacity:disabled").wait_for()
    assert page.inner_text("#opacity-value") == "as the library draws"
    page.locator("#colormap").select_option("turbo")
    assert page.locator("#opacity").is_enabled()
    page.get_by_label("Conventions of").select_option("ultralytics")
    text = tab.refused("stands for")
    assert text.count(". ") == 0
    assert page.locator("#view").is_hidden()


def test_texts_are_copied(chromium, shapes):
    origin = f"http://127.0.0.1:{shapes.port}"
    with Tab(chromium, shapes) as tab:
        tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
        tab.settled()
        for name in ("Copy the command", "Copy the Python code", "Copy this command"):
            tab.page.get_by_role("button", name=name).click()
            tab.status("Copied.")
            assert tab.page.evaluate("navigator.clipboard.readText()").startswith(("onnx-gradcam", "from onnx_gradcam"))


def test_the_explained_model_is_saved(tab, tmp_path):
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save the explained model").click()
    assert download.value.suggested_filename == "shapes-explained.onnx"
    download.value.save_as(tmp_path / "e.onnx")
    assert "heatmap" in [output.name for output in onnx.load(tmp_path / "e.onnx").graph.output]
    tab.status("The explained model is saved.")


def test_images_are_chosen_dropped_pasted_and_sampled(tab, repository):
    page = tab.page
    page.set_input_files("#file", repository / "models" / "square_and_ring.png")
    tab.status("square")
    dropped(page, "dropped.png", (repository / "models" / "triangle_and_cross.png").read_bytes())
    page.get_by_role("button", name="dropped.png", pressed=True).wait_for()
    tab.settled()
    data = list((repository / "models" / IMAGE).read_bytes())
    page.evaluate(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'pasted.png', { type: 'image/png' }));
        dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })); }""",
        data,
    )
    page.get_by_role("button", name="pasted.png", pressed=True).wait_for()
    page.get_by_role("button", name="Use the sample image").click()
    page.get_by_role("button", name="sample.jpg", pressed=True).wait_for()
    page.locator("#command", has_text="sample.jpg").wait_for()
    assert Path(page.inner_text("#command").split()[3]).is_file(), "the sample is a file that the command finds"
    names = page.eval_on_selector_all("#images img", "all => all.map(e => e.alt)")
    assert names[-4:] == ["square_and_ring.png", "dropped.png", "pasted.png", "sample.jpg"]


def test_what_is_wrong_is_said_in_one_sentence_and_the_page_goes_on(tab, repository):
    page = tab.page
    for name, data, words in (
        ("damaged.png", png()[:20], "damaged"),
        ("no.png", b"text", "The data is not an image in a supported format"),
    ):
        dropped(page, name, data)
        assert tab.refused(words).endswith(".")
    page.set_input_files("#file", repository / "models" / "square_and_ring.png")
    page.get_by_role("button", name="square_and_ring.png", pressed=True).wait_for()
    page.get_by_role("button", name="cross").click()
    assert "blank" in tab.status("cross")
    assert "zero everywhere" in page.inner_text("#warnings")
    tab.heard[:] = [text for text in tab.heard if "status of 400" not in text]


def test_a_newer_wish_ends_the_older_one(tab):
    page = tab.page
    page.locator("#methods-box summary").click()
    page.get_by_label("RISE", exact=True).check()
    tab.status("of 4000")
    page.locator("#progress").wait_for()
    page.get_by_label("RISE", exact=True).uncheck()
    page.get_by_role("button", name="circle 99.6 %").click()
    tab.status("Grad-CAM of circle")
    assert page.locator("#progress").is_hidden()
    assert len(tab.panels()) == 1


def test_boxes_are_chosen_in_the_image_and_in_the_list(chromium, tmp_path):
    onnx.save(placed_detector(5), tmp_path / "m.onnx")
    low = np.random.default_rng(2).integers(0, 256, (4, 5, 3), np.uint8)
    data = cv2.imencode(".png", cv2.resize(low, (67, 41), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    choices = {"preprocess": {"size": [32, 32], "resize": "letterbox", "scale": 1 / 255, "mean": [0.45]}}
    bench = Workbench(tmp_path / "m.onnx", spoken=flags, labels=["a ship", "<b>buoy</b>"], **choices)
    with running(bench) as studio, Tab(chromium, studio) as tab:
        page = tab.page
        tab.status("The model is ready")
        dropped(page, "waves.png", data)
        tab.status("hottest")
        tab.settled()
        assert page.get_by_role("region", name="Boxes", exact=True).count() == 1
        count = page.locator("#classes button").count()
        assert count == page.locator(".boxes .hit").count() > 2
        page.locator("#classes button").nth(1).click()
        page.locator("#command", has_text="--box 1").wait_for()
        # The last one lies on top.
        drawn = [hit for hit in page.locator(".boxes .hit").all() if float(hit.get_attribute("height")) > 8]
        drawn[-1].click()
        page.locator("#command", has_text=f"--box {drawn[-1].get_attribute('data-index')} ").wait_for()
        assert page.locator("b").count() == 0, "names cannot be markup"


def test_names_cannot_run(chromium, tmp_path):
    onnx.save(graph(BODY, w=(5, 3, 3, 3), v=(5, 3), outputs="float[N,3] y"), tmp_path / "m.onnx")
    labels = [EVIL, "", "<img src=x onerror=alert(1)>"]
    bench = Workbench(tmp_path / "m.onnx", spoken=flags, preprocess={"size": [8, 8]}, labels=labels)
    with running(bench) as studio, Tab(chromium, studio) as tab:
        tab.status("The model is ready")
        dropped(tab.page, "<b>name<b>.png", png())
        tab.status("Grad-CAM")
        tab.settled()
        names = tab.page.locator("#classes .name").all_inner_texts()
        assert sorted(names) == sorted([EVIL, "class 1", labels[2]])
        assert tab.page.locator("b, [onerror]").count() == 0


def test_a_model_without_preprocessing_asks_for_it(chromium, tmp_path):
    onnx.save(graph(BODY, w=(5, 3, 3, 3), v=(5, 3), outputs="float[N,3] y"), tmp_path / "m.onnx")
    with running(Workbench(tmp_path / "m.onnx", spoken=flags)) as studio, Tab(chromium, studio) as tab:
        tab.status("The model carries no preprocessing")
        dropped(tab.page, "p.png", png())
        assert tab.refused("give it with --preprocess").startswith("The model carries no preprocessing")
        tab.page.get_by_label("Image to input").select_option("none")
        tab.status("Grad-CAM")


def test_a_studio_that_has_ended_says_so(chromium, repository):
    bench = Workbench(repository / "models" / "shapes.onnx", [repository / "models" / IMAGE], spoken=flags)
    with running(bench) as studio:
        tab = Tab(chromium, studio)
        tab.settled()
    tab.page.get_by_role("button", name=re.compile("^circle [^_]")).click()
    assert tab.refused("does not answer") == "The studio does not answer; start it again."
    tab.page.context.close()


def test_the_policy_lets_nothing_out(tab):
    tried = tab.page.evaluate(
        """async () => {
        const blocked = [];
        document.addEventListener('securitypolicyviolation', e => blocked.push(e.effectiveDirective));
        const script = document.createElement('script'); script.textContent = 'document.title = 1';
        document.body.append(script);
        const sent = await fetch(`http://localhost:${location.port}/`, { mode: 'no-cors' }).then(() => 1, () => 0);
        const image = new Image();
        const loaded = await new Promise(resolve => { image.onload = () => resolve(1); image.onerror = () => resolve(0);
          image.src = `http://localhost:${location.port}/x.png`; });
        return { blocked, sent, loaded }; }"""
    )
    assert tried == {"blocked": ["script-src-elem", "connect-src", "img-src"], "sent": 0, "loaded": 0}
    tab.heard.clear()
    tab.asked.clear()


def test_another_page_cannot_read_or_write(chromium, shapes, host):
    """A page of another origin that knows even the token gets nothing, and its requests change nothing."""
    root, address = host
    (root / "evil.html").write_text("<p>", "utf-8")
    page = chromium.new_page()
    page.goto(f"{address}/evil.html")
    before = len(shapes.workbench.images())
    tried = page.evaluate(
        """async address => {
        const read = await fetch(address + 'api/model').then(r => r.text(), () => 'stopped');
        const sent = await fetch(address + 'api/sample', { method: 'POST', mode: 'no-cors', body: '{}' })
          .then(r => r.type, () => 'stopped');
        return { read, sent }; }""",
        shapes.address,
    )
    assert tried["read"] == "stopped"
    assert len(shapes.workbench.images()) == before
    page.close()
