"""The page of a model in a browser: worked by keyboard, read aloud, on a phone, attacked by names, and failing."""

from __future__ import annotations

import json
import struct

import cv2
import numpy as np
import onnx
import pytest
from support.browser_pages import CONTRAST, DESKTOP, PHONE
from support.comparisons import EVIL
from support.graphs import graph, placed_detector
from support.web_pages import Page

from onnx_gradcam.runtime.answers import percentage

pytestmark = pytest.mark.browser

IMAGE = "circle_and_star.png"
MANY = "h = Conv(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)"


@pytest.fixture
def image(repository):
    return repository / "models" / IMAGE


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, chromium, shapes, image):
    """The demo's page with an image; what it complained about or asked elsewhere fails the test."""
    with Page(chromium, shapes, viewport=request.param) as page:
        page.choose(image)
        yield page
        assert page.heard == []
        assert [url for url in page.asked if not url.startswith((shapes, f"blob:{shapes.rsplit('/', 2)[0]}"))] == []


def test_it_fits_the_width_and_can_be_read(page):
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= page.tab.viewport_size["width"]
    found = page.tab.evaluate(CONTRAST)
    assert len(found) > 20
    assert min(f["contrast"] for f in found) >= 4.5
    assert min(f["size"] for f in found) >= 13
    heights = page.tab.eval_on_selector_all("#classes button", "all => all.map(b => b.clientHeight)")
    assert min(heights) >= 40


def test_it_is_worked_by_keyboard_alone(page):
    tab = page.tab
    tab.locator("#file").focus()
    for wanted in ("sample", "opacity", "colormap", "original", "save"):
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == wanted
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    name = tab.evaluate("document.activeElement.querySelector('.name').textContent")
    assert name == "circle"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.evaluate("() => { window.seen = null; }")
    tab.keyboard.press("Enter")
    assert page.seen()["index"] == page.facts()["labels"].index("circle")
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.locator("#opacity").focus()
    before = page.canvas()
    tab.keyboard.press("End")
    assert tab.inner_text("#opacity-value") == "100 %"
    assert (page.canvas() != before).any()


def test_a_screen_reader_finds_its_way(page):
    tab = page.tab
    levels = tab.eval_on_selector_all("h1, h2", "all => all.map(h => Number(h.tagName[1]))")
    assert levels == [1, 2, 2, 2]
    for name in ("Image", "Heatmap", "Classes"):
        assert tab.get_by_role("region", name=name, exact=True).count() == 1
    assert tab.get_by_role("img", name=f"Heatmap of star over {IMAGE}: hottest at the centre").count() == 1
    assert tab.get_by_role("button", name="star", pressed=True).count() == 1
    assert tab.get_by_role("button", pressed=False).count() >= 5
    assert "Heatmap of star, >99.9 %: hottest at the centre." in tab.get_by_role("status").all_inner_texts()
    assert tab.get_by_label("Opacity").count() == tab.get_by_label("Colours").count() == 1
    assert tab.get_by_label("Drop an image here, or choose one:").count() == 1


def test_the_original_is_toggled(page):
    drawn = page.canvas()
    page.tab.get_by_role("button", name="Show the original").click()
    plain = page.canvas()
    assert (plain != drawn).any()
    page.tab.locator("#opacity").fill("0")
    np.testing.assert_array_equal(page.canvas(), plain)
    page.tab.locator("#opacity").fill("50")
    page.tab.get_by_role("button", name="Show the original", pressed=True).click()
    np.testing.assert_array_equal(page.canvas(), drawn)


def test_the_picture_is_saved(page, tmp_path):
    with page.tab.expect_download() as download:
        page.tab.get_by_role("button", name="Save the picture").click()
    assert download.value.suggested_filename == "circle_and_star_star.png"
    download.value.save_as(tmp_path / "saved.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "saved.png"))[:, :, ::-1], page.canvas())
    page.asked[:] = [url for url in page.asked if not url.startswith("blob:")]


def test_dark_is_chosen_and_can_be_read(page):
    page.tab.get_by_role("button", name="Dark", pressed=False).click()
    assert page.tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert min(f["contrast"] for f in page.tab.evaluate(CONTRAST)) >= 4.5
    page.tab.reload()
    assert page.tab.get_by_role("button", name="Dark", pressed=True).count() == 1


def test_the_sample_image_is_explained_under_the_title_that_was_given(chromium, publish, repository):
    address = publish(
        repository / "models" / "shapes.onnx",
        probabilities="sigmoid",
        title="Shapes <b>",
        sample=repository / "models" / "square_and_ring.png",
    )
    with Page(chromium, address) as page:
        page.ready()
        assert page.tab.title() == page.tab.inner_text("h1") == "Shapes <b>"
        page.tab.get_by_role("button", name="Use the sample image").click()
        assert page.seen()["index"] == page.facts()["labels"].index("square")
        assert page.heard == []


def test_the_policy_lets_nothing_out(page):
    """What escaping might miss one day, or a worker might do, the policy still stops."""
    tried = page.tab.evaluate(
        """async () => {
        const blocked = [];
        document.addEventListener('securitypolicyviolation', e => blocked.push(e.effectiveDirective));
        const script = document.createElement('script'); script.textContent = 'document.title = 1';
        document.body.append(script);
        const elsewhere = `http://localhost:${location.port}/`;
        const send = url => fetch(url, { mode: 'no-cors' }).then(() => 'sent', () => 'stopped');
        const sent = [await send(elsewhere)];
        const code = `const send = ${send}; send('${elsewhere}').then(postMessage)`;
        const worker = new Worker(URL.createObjectURL(new Blob([code])));
        sent.push(await new Promise(resolve => { worker.onmessage = e => resolve(e.data); }));
        return { blocked, sent }; }"""
    )
    assert page.tab.title() == "shapes"
    assert tried == {"blocked": ["script-src-elem", "connect-src"], "sent": ["stopped", "stopped"]}
    page.heard.clear()
    page.asked.clear()


def test_names_cannot_run(chromium, publish, tmp_path):
    onnx.save(graph(MANY, w=(5, 3, 3, 3), v=(5, 3), outputs="float[N,3] y"), tmp_path / "m.onnx")
    labels = [EVIL, "", "<img src=x onerror=alert(1)>"]
    address = publish(tmp_path / "m.onnx", preprocess={"size": [8, 8]}, labels=labels)
    with Page(chromium, address) as page:
        page.choose(("<b>name</b>.png", png()))
        names = page.tab.locator("#classes .name").all_inner_texts()
        assert sorted(names) == sorted([EVIL, "class 1", labels[2]])
        for index in range(3):
            page.tab.locator(f"button[data-index='{index}']").click()
        page.poll("() => document.getElementById('results').getAttribute('aria-busy') === 'false'")
        assert page.tab.title() == "m"
        assert page.tab.locator("img, b, [onerror]").count() == 0
        assert page.heard == []


def test_one_of_many_classes_is_found_by_name(chromium, publish, tmp_path):
    onnx.save(graph(MANY, w=(5, 3, 3, 3), v=(5, 300), outputs="float[N,300] y"), tmp_path / "m.onnx")
    labels = [f"{'tabby' if i % 20 == 7 else 'other'} {i}" for i in range(300)]
    with Page(chromium, publish(tmp_path / "m.onnx", preprocess={"size": [8, 8]}, labels=labels)) as page:
        page.choose(("p.png", png()))
        assert page.tab.locator("#classes li").count() == 10
        assert page.tab.inner_text("#more") == "290 more: find them by name."
        page.tab.get_by_label("Find a class").fill("TABBY 2")
        assert sorted(page.tab.locator("#classes .name").all_inner_texts()) == [
            "tabby 207",
            "tabby 227",
            "tabby 247",
            "tabby 267",
            "tabby 27",
            "tabby 287",
        ]
        assert page.click("tabby 227")["index"] == 227
        page.tab.get_by_label("Find a class").fill("none such")
        assert page.tab.inner_text("#more") == "No class matches."


def png(width: int = 8, height: int = 8) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), 99, np.uint8))[1].tobytes()


NAMES = ["a ship", "<b>buoy</b>"]
FRAME = """([x0, y0, x1, y1]) => { const c = document.getElementById('view').getBoundingClientRect();
  const scale = Math.min(c.width / 67, c.height / 41);
  return [c.left + x0 * scale, c.top + y0 * scale, c.left + x1 * scale, c.top + y1 * scale]; }"""


def waves(height: int = 41, width: int = 67) -> bytes:
    low = np.random.default_rng(2).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.imencode(".png", cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture
def detector(publish, tmp_path):
    """The page of a detector whose scores are 0.5 in a black image, with a blank map, and lower in any other."""
    proto = placed_detector(5)
    scores = next(one for one in proto.graph.initializer if one.name == "S")
    weights = onnx.numpy_helper.to_array(scores)
    scores.CopyFrom(onnx.numpy_helper.from_array(-10 * np.abs(weights), "S"))
    onnx.save(proto, tmp_path / "m.onnx")
    return publish(
        tmp_path / "m.onnx", preprocess={"size": [32, 32], "resize": "letterbox", "scale": 1 / 255}, labels=NAMES
    )


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def boxes(request, chromium, publish, tmp_path):
    """The page of a detector with an image in which it finds many boxes."""
    onnx.save(placed_detector(5), tmp_path / "m.onnx")
    described = {"size": [32, 32], "resize": "letterbox", "scale": 1 / 255, "mean": [0.45]}
    address = publish(tmp_path / "m.onnx", preprocess=described, labels=NAMES)
    with Page(chromium, address, viewport=request.param) as page:
        page.choose(("waves.png", waves()))
        yield page
        assert page.heard == []


def test_boxes_are_drawn_where_they_are_and_named(boxes):
    tab, seen = boxes.tab, boxes.tab.evaluate("() => window.seen")
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]
    assert tab.locator("#boxes .hit").count() == len(seen["boxes"]) == tab.locator("#classes button").count()
    assert tab.locator("#boxes text").count() == len(seen["boxes"])
    for box in seen["boxes"][:5]:
        drawn = tab.locator(f"#boxes .hit[data-index='{box['n']}']").bounding_box()
        corners = [drawn["x"], drawn["y"], drawn["x"] + drawn["width"], drawn["y"] + drawn["height"]]
        np.testing.assert_allclose(corners, tab.evaluate(FRAME, box["xyxy"]), atol=1)
        row = tab.locator(f"#classes button[data-index='{box['n']}']")
        assert row.locator(".name").inner_text() == f"{box['n']} {NAMES[box['target']]}"
        assert row.locator(".value").inner_text() == percentage(box["score"])
    found = tab.evaluate(CONTRAST)
    assert min(f["size"] for f in found) >= 13
    image = tab.evaluate(FRAME, [0, 0, 67, 41])
    for label in tab.locator("#boxes .ground").all():
        place = label.bounding_box()
        assert place["x"] >= image[0] - 1
        assert place["x"] + place["width"] <= image[2] + 1
        assert image[1] - 1 <= place["y"] <= image[3]


def test_a_box_is_chosen_in_the_image_in_the_list_and_by_keyboard(boxes):
    tab, seen = boxes.tab, boxes.tab.evaluate("() => window.seen")
    chosen = tab.locator("#boxes .chosen text")
    assert (seen["chosen"], chosen.text_content()) == (0, f"0 {NAMES[seen['boxes'][0]['target']]}")
    areas = [(b["xyxy"][2] - b["xyxy"][0]) * (b["xyxy"][3] - b["xyxy"][1]) for b in seen["boxes"]]
    smallest = min((area, n) for n, area in enumerate(areas) if area > 4)[1]
    assert boxes.click_box(smallest)["chosen"] == smallest
    assert tab.locator("#classes [aria-pressed='true']").get_attribute("data-index") == str(smallest)
    assert chosen.text_content() == f"{smallest} {NAMES[seen['boxes'][smallest]['target']]}"
    second = seen["boxes"][1]
    got = boxes.click_box(1, "#classes button")
    assert (got["chosen"], got["index"]) == (1, second["target"])
    x0, y0, x1, y1 = map(round, second["xyxy"])
    assert f"x {x0} to {x1}, y {y0} to {y1}: hottest at the" in tab.inner_text("#status")
    tab.evaluate("() => { window.seen = null; }")
    tab.locator("#classes button").nth(2).focus()
    tab.keyboard.press("Enter")
    assert boxes.seen()["chosen"] == 2
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_a_list_of_boxes_can_be_narrowed(boxes):
    tab, seen = boxes.tab, boxes.tab.evaluate("() => window.seen")
    assert tab.get_by_role("region", name="Boxes", exact=True).count() == 1
    ships = [box["n"] for box in seen["boxes"] if box["target"] == 0]
    assert 0 < len(ships) < len(seen["boxes"])
    tab.get_by_label("Find a box").fill("A Ship")
    assert [int(b.get_attribute("data-index")) for b in tab.locator("#classes button").all()] == ships
    drawn = {int(hit.get_attribute("data-index")) for hit in tab.locator("#boxes .hit").all()}
    assert drawn == {*ships, 0}, "the chosen one stays"
    assert tab.locator("b").count() == 0, "names cannot be markup"


def test_boxes_follow_the_size_of_the_window(boxes):
    tab, box = boxes.tab, boxes.tab.evaluate("() => window.seen.boxes[0].xyxy")
    tab.set_viewport_size({"width": 500, "height": 600})
    place = "() => document.querySelector(\"#boxes .hit[data-index='0']\").getBoundingClientRect().x"
    left = tab.evaluate(FRAME, box)[0]
    boxes.poll(f"wanted => Math.abs(({place})() - wanted) < 1", left)


def test_that_nothing_is_found_is_said_and_nothing_is_shown(chromium, detector):
    with Page(chromium, detector) as page:
        bright = cv2.imencode(".png", np.full((20, 30, 3), 255, np.uint8))[1].tobytes()
        black = cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
        seen = page.choose(("black.png", black))
        assert not seen["heatmap"].any()
        assert page.tab.inner_text("#status") == (
            f"Heatmap of 0 {NAMES[0]}, 50.0 %, x 2 to 2, y 2 to 2: blank, nothing in the image supports this box."
        )
        text = page.finds_nothing("bright.png", bright)
        assert text.startswith("Nothing found in bright.png: the highest score of a box is 0.")
        assert text.endswith(", below 0.25.")
        assert page.tab.locator("#results").is_hidden()
        assert page.tab.locator("#error").is_hidden()
        assert page.choose(("black.png", black))["chosen"] == 0
        assert page.heard == []


def test_a_table_without_boxes_is_nothing_found(chromium, publish, tmp_path):
    """Boxes that the graph chooses by their scores: of a black image, none."""
    body = (
        "k = Conv(x, K) p = Reshape(k, flat) picked = NonMaxSuppression(corners, p, most, iou, least) "
        "col = Slice(picked, two, three, one) which = Squeeze(col, one) line = Reshape(p, all) "
        "g = Gather(line, which) scores = Unsqueeze(g, zero)"
    )
    corners = np.repeat(np.arange(64, dtype=np.float32), 4).reshape(1, 64, 4) + np.array([0, 0, 1, 1], np.float32)
    onnx.save(
        graph(
            body, inputs="float[1,1,8,8] x", outputs="float[1,M] scores", K=np.ones((1, 1, 1, 1), np.float32),
            flat=[1, 1, 64], all=[-1], zero=[0], one=[1], two=[2], three=[3], most=[4],
            iou=np.array([0.5], np.float32), least=np.array([0.3], np.float32), corners=corners,
        ),
        tmp_path / "m.onnx",
    )  # fmt: skip
    address = publish(
        tmp_path / "m.onnx", output="scores", task="detection", preprocess={"color": "gray", "scale": 1 / 255}
    )
    black, white = (cv2.imencode(".png", np.full((8, 8, 3), level, np.uint8))[1].tobytes() for level in (0, 255))
    with Page(chromium, address) as page:
        assert len(page.choose(("white.png", white))["boxes"]) == 4
        assert page.tab.locator("#boxes rect").count() == 0
        assert "does not tell where its boxes are" in page.tab.inner_text("#hint")
        assert page.finds_nothing("black.png", black) == "Nothing found in black.png: the model has no box."
        assert page.tab.locator("#results").is_hidden()


BAD = {
    "empty": (b"", "is not an image"),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
    "torn": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "is not an image"),
    "damaged": (png()[:60], "is damaged"),
    "bomb": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 30000, 30000), "has 30000 x 30000 pixels, too many"),
    "torn JPEG": (b"\xff\xd8\xff\xe1\xff\xff", "is not an image"),
}


def test_bad_images_are_refused_in_a_sentence_and_good_ones_go_on(chromium, shapes, image):
    with Page(chromium, shapes) as page:
        page.choose(image)
        for name, (data, message) in BAD.items():
            assert message in page.refuses(f"{name}.png", data), name
            assert page.tab.locator("#results").is_hidden()
        assert page.choose(image)["index"] >= 0
        assert page.tab.locator("#error").is_hidden()
        assert page.heard == []


NO_WEBASSEMBLY = "delete globalThis.WebAssembly"
NO_CANVAS = "delete globalThis.OffscreenCanvas"
FAILURES = {
    "no WebAssembly": (NO_WEBASSEMBLY, None, "This browser has no WebAssembly"),
    "an old browser": (NO_CANVAS, None, "This browser is too old, it has no OffscreenCanvas"),
    "no model": ("", ("**/model.onnx", {"status": 404}), "the server answers 404 for model.onnx"),
    "a short model": ("", ("**/model.onnx", {"body": b"x" * 1000}), "The model is incomplete, 1000 of"),
    "a damaged model": ("", ("**/model.onnx", "zeros"), "The model cannot run in this browser"),
    "no facts": ("", ("**/site.json", {"status": 404}), "site.json is missing or damaged"),
    "damaged facts": ("", ("**/site.json", {"body": "{"}), "site.json is missing or damaged"),
    "no runtime": ("", ("**/*.wasm", {"status": 404}), "The model cannot run in this browser"),
    "a part missing": ("", ("**/engine.js", {"status": 404}), "A part of this page is missing"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_failed_is_said(chromium, shapes, kind, host):
    script, route, message = FAILURES[kind]

    def fail(tab):
        if route is None:
            return
        answer = route[1]
        if answer == "zeros":
            facts = json.loads((host[0] / shapes.split("/")[-2] / "site.json").read_text("utf-8"))
            answer = {"body": bytes(facts["model"]["bytes"])}
        tab.context.route(route[0], lambda asked: asked.fulfill(**answer))

    with Page(chromium, shapes, script=script, before=fail) as page:
        text = page.error()
        assert message in text
        assert text.count(". ") == 0
        assert page.tab.locator("#file").is_disabled()
        assert page.tab.locator("#loading").is_hidden()
