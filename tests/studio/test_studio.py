"""The studio without a browser: its numbers, its pictures, and whom it refuses."""

from __future__ import annotations

import http.client
import io
import shlex
import socket
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph, placed_detector
from support.studio_server import TOKEN, running
from typer.testing import CliRunner

from onnx_gradcam import Explainer, Selection, attach
from onnx_gradcam.cli import app
from onnx_gradcam.cli._options import flags
from onnx_gradcam.errors import ExplainError, InputError, ServerError
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import PRESETS

pytest.importorskip("starlette", reason="the studio is not installed: pip install '.[studio]'")
from onnx_gradcam.studio import workbench as benches
from onnx_gradcam.studio.jobs import Jobs
from onnx_gradcam.studio.recipes import Recipe, explain_command
from onnx_gradcam.studio.workbench import Workbench

BODY = "h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)"


@pytest.fixture(scope="module")
def model(repository):
    return repository / "models" / "shapes.onnx"


@pytest.fixture(scope="module")
def photo(repository):
    return repository / "models" / "circle_and_star.png"


@pytest.fixture(scope="module")
def bench(model, photo):
    return Workbench(model, [photo], probabilities="sigmoid", spoken=flags)


@pytest.fixture(scope="module")
def studio(bench):
    with running(bench) as studio:
        yield studio


@pytest.fixture
def image(studio):
    return studio.ask("api/model").json["images"][0]["id"]


def pixels(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def narrow(height: int = 8, width: int = 8, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, np.full((height, width, 3), 99, np.uint8))[1].tobytes()


def test_the_page_says_what_the_model_is(studio, model):
    facts = studio.ask("api/model").json
    assert (facts["name"], facts["task"], facts["method"]) == ("shapes.onnx", "classification", "gradcam")
    assert facts["labels"] == Explainer(model).labels
    assert [layer["tensor"] for layer in facts["layers"] if layer["chosen"]] == ["relu_6"]
    assert facts["layers"][0]["grid"] == "12x12"
    assert {"gradcam", "layercam", "rise"} <= {method["name"] for method in facts["methods"]}
    assert "drise" not in {method["name"] for method in facts["methods"]}, "it explains boxes alone"
    assert facts["preprocessing"]["presets"] == list(PRESETS)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"methods": ["gradcam", "layercam"], "target": 0},
        {"methods": ["gradcam++"], "preset": "pytorch-grad-cam", "layer": ["features.5"]},
        {"methods": ["saliency"], "preprocess": {"size": [96, 96], "scale": 1 / 255}},
        {"methods": ["ablationcam"], "target": 4},
    ],
)
def test_its_numbers_are_those_of_the_explainer(studio, image, model, photo, recipe):
    answer = studio.explain(image, **recipe)
    method = recipe.get("methods", [None])[0]
    choices = {name: recipe[name] for name in ("preset", "layer", "preprocess") if name in recipe}
    native = Explainer(model, method=method, **choices)(photo, recipe.get("target"))
    np.testing.assert_allclose(answer["scores"], native.scores, atol=1e-6)
    np.testing.assert_allclose(answer["shares"], 1 / (1 + np.exp(-native.scores.astype(np.float64))), atol=1e-6)
    assert [panel["target"]["index"] for panel in answer["panels"]] == [native.target.index] * len(answer["panels"])
    assert answer["panels"][0]["warnings"] == native.warnings
    saved = np.load(io.BytesIO(studio.ask(f"api/sheets/{answer['sheet']}.npz").body))
    for name, values in native.arrays().items():
        np.testing.assert_allclose(saved[name], values, atol=1e-6, err_msg=name)


def test_the_image_is_shown_as_the_model_sees_it(studio, image, model, photo):
    seen = studio.explain(image, preprocess="keras-caffe")["seen"]
    explainer = Explainer(model, preprocess="keras-caffe")
    tensor, _ = prepare(read_image(photo), explainer.preprocessing)
    assert (seen["shape"], seen["dtype"]) == ([3, 96, 96], "float32")
    for name, value in {"low": tensor.min(), "high": tensor.max(), "mean": tensor.mean(), "std": tensor.std()}.items():
        assert seen[name] == pytest.approx(float(value), abs=1e-3)
    assert seen["settings"] == explainer.preprocessing.to_dict()
    assert seen["image"].startswith("data:image/png;base64,")


LOOKS = [
    {"methods": ["gradcam"]},
    {"methods": ["gradcam", "hirescam"], "target": 0, "colormap": "viridis", "opacity": 0.3},
    {"methods": ["gradcam"], "preset": "keras-io", "layer": ["features.5"]},
    {"methods": ["gradcam"], "preprocess": {"size": [96, 96], "scale": 1 / 255}, "opacity": 1.0},
]


def made_by(run, folder) -> np.ndarray:
    """The pixels of the one image that something writes into a folder, which it leaves empty."""
    run()
    (path,) = folder.glob("*_gradcam.png")
    drawn = pixels(path.read_bytes())
    path.unlink()
    return drawn


@pytest.mark.parametrize("recipe", LOOKS)
def test_command_and_code_make_the_picture_that_is_saved(studio, image, recipe, tmp_path, monkeypatch):
    answer = studio.explain(image, **{k: v for k, v in recipe.items() if k not in {"colormap", "opacity"}})
    look = "&".join(f"{name}={recipe[name]}" for name in ("colormap", "opacity") if name in recipe)
    saved = pixels(studio.ask(f"api/sheets/{answer['sheet']}.png?{look}").body)
    texts = studio.ask("api/reproduce", {"image": image, **recipe}).json
    name, *words = shlex.split(texts["command"])
    assert name == "onnx-gradcam"
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(made_by(lambda: CliRunner().invoke(app, words), tmp_path), saved)
    np.testing.assert_array_equal(made_by(lambda: exec(texts["python"], {}), tmp_path), saved)  # noqa: S102


def test_what_lies_over_the_image_is_what_the_tool_draws(studio, image, model, photo):
    """The page fades the colours over the image: the same sum as in the tool's overlay."""
    answer = studio.explain(image)
    below = pixels(studio.ask(f"api/images/{image}.png").body).astype(np.float64)
    heat = pixels(studio.ask(f"api/heat/{answer['panels'][0]['key']}.png?colormap=turbo").body)
    drawn = Explainer(model)(photo).overlay(colormap="turbo", opacity=0.4).pixels[:, :, ::-1]
    assert np.abs(0.6 * below + 0.4 * heat - drawn).max() <= 1


def test_attributions_are_drawn_alone_until_an_opacity_is_chosen(studio, image, model, photo):
    answer = studio.explain(image, methods=["saliency", "gradcam"])
    fine, coarse = answer["panels"]
    assert (fine["overImage"], coarse["overImage"]) == (False, True)
    heat = pixels(studio.ask(f"api/heat/{fine['key']}.png").body)
    native = Explainer(model, method="saliency")(photo)
    np.testing.assert_array_equal(heat, native.overlay().pixels[:, :, ::-1])
    over = pixels(studio.ask(f"api/heat/{fine['key']}.png?opacity=0.5").body)
    np.testing.assert_array_equal(over, native.overlay(opacity=1.0).pixels[:, :, ::-1])


def test_probabilities_are_the_tools_own_unless_chosen(model, photo):
    own = Explainer(model)(photo)
    for chosen, expected in ((None, own.probabilities), ("none", None)):
        with running(Workbench(model, [photo], probabilities=chosen, spoken=flags)) as studio:
            shares = studio.explain(studio.ask("api/model").json["images"][0]["id"])["shares"]
        assert shares == (None if expected is None else pytest.approx(expected.tolist(), abs=1e-6))


def test_the_explained_model_can_be_saved(studio, image, tmp_path, model, photo):
    saved = studio.ask("api/attach", {"image": image, "methods": ["hirescam"], "layer": ["features.5"]})
    assert saved.headers["content-disposition"] == "attachment"
    (tmp_path / "e.onnx").write_bytes(saved.body)
    native = Explainer(model, method="hirescam", layer="features.5")(photo)
    np.testing.assert_allclose(Explainer(tmp_path / "e.onnx")(photo).heatmap, native.heatmap, atol=1e-6)
    refused = studio.ask("api/attach", {"image": image, "methods": ["rise"]})
    assert refused.status == 400
    assert "rise" in refused.error.lower()
    words = shlex.split(studio.ask("api/reproduce", {"image": image, "layer": ["features.5"]}).json["attach"])
    assert CliRunner().invoke(app, [*words[1:3], "-o", str(tmp_path / "c.onnx"), *words[5:]]).exit_code == 0
    assert (tmp_path / "c.onnx").is_file()


def test_a_layer_has_a_thumbnail(studio, image):
    first, second = (
        studio.events("api/thumbnail", image, layer=[layer])[-1]["answer"]["thumbnail"]
        for layer in ("features.5", "features.2")
    )
    assert first.startswith("data:image/png;base64,")
    assert first != second


def test_boxes_of_a_detector(tmp_path, monkeypatch):
    onnx.save(placed_detector(5), tmp_path / "m.onnx")
    low = np.random.default_rng(2).integers(0, 256, (4, 5, 3), np.uint8)
    data = cv2.imencode(".png", cv2.resize(low, (67, 41), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    (tmp_path / "waves.png").write_bytes(data)
    choices = {"labels": ["a ship", "buoy"]}
    choices["preprocess"] = {"size": [32, 32], "resize": "letterbox", "scale": 1 / 255, "mean": [0.45]}
    native = Explainer(tmp_path / "m.onnx", **choices)
    with running(Workbench(tmp_path / "m.onnx", spoken=flags, **choices)) as studio:
        image = studio.add("waves.png", data)
        assert studio.explain(image)["boxes"] == [box.to_dict() for box in native.boxes(data)]
        answer = studio.explain(image, methods=["hirescam"], box=1)
        expected = Explainer(tmp_path / "m.onnx", method="hirescam", **choices)
        chosen = expected(data, box=Selection(which="number", value=1))
        assert answer["panels"][0]["box"] == chosen.maps[0].boxes[0].to_dict()
        texts = studio.ask("api/reproduce", {"image": image, "methods": ["hirescam"], "box": 1}).json
        assert "--box 1" in texts["command"]
        monkeypatch.chdir(tmp_path)
        saved = pixels(studio.ask(f"api/sheets/{answer['sheet']}.png").body)
        np.testing.assert_array_equal(made_by(lambda: exec(texts["python"], {}), tmp_path), saved)  # noqa: S102
        error = studio.events("api/explain", image, box=999)[-1]["error"]
        assert error.startswith("there is no box 999 in this image")


def test_an_explained_model_shows_what_it_holds(tmp_path, model, photo):
    attach(model, method="layercam").save(tmp_path / "e.onnx")
    with running(Workbench(tmp_path / "e.onnx", [photo], spoken=flags)) as studio:
        facts = studio.ask("api/model").json
        assert (facts["explained"], facts["method"], facts["layers"]) == (True, "layercam", [])
        image = facts["images"][0]["id"]
        assert studio.explain(image)["panels"][0]["title"] == "LayerCAM"
        assert "explained already" in studio.ask("api/attach", {"image": image}).error
        python = studio.ask("api/reproduce", {"image": image}).json["python"]
        assert ".sheet()" in python


def test_without_preprocessing_it_asks_for_one(tmp_path):
    onnx.save(graph(BODY, w=(5, 3, 3, 3), v=(5, 4)), tmp_path / "m.onnx")
    with running(Workbench(tmp_path / "m.onnx", spoken=flags)) as studio:
        assert not studio.ask("api/model").json["preprocessing"]["described"]
        image = studio.add("p.png", narrow())
        error = studio.events("api/explain", image)[-1]["error"]
        assert error.startswith("the model carries no preprocessing; give it with --preprocess")
        assert studio.explain(image, preprocess={"size": [8, 8]})["scores"]


# Whom it refuses


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["", "api/model", "studio.js"])
def test_another_host_or_page_is_refused(studio, headers, path):
    refused = studio.ask(path, **headers)
    assert refused.status == 403
    assert "open the address that it printed" in refused.error


def test_its_own_page_is_not(studio):
    own = f"http://127.0.0.1:{studio.port}"
    assert studio.ask("api/model", Origin=own, Sec_Fetch_Site="same-origin").status == 200
    assert studio.ask("api/model", Host=f"localhost:{studio.port}").status == 200


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%00", "%C3%A9", ".."])
@pytest.mark.parametrize("path", ["", "api/model", "studio.css"])
def test_a_wrong_token_is_refused(studio, token, path):
    refused = studio.ask(path, token=token)
    assert refused.status in {400, 403}
    assert b"token" in refused.body or refused.status == 400


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "studio.js/../../application.py",
        "application.py",
        "api/images/..%2f..%2fsetup.png",
        "api/images/%2fetc%2fpasswd/file",
        "api/sheets/../../x.npz",
    ],
)
def test_a_traversal_reaches_nothing(studio, path):
    refused = studio.ask(path)
    assert refused.status == 404
    assert set(refused.json) == {"error"}
    assert b"root:" not in refused.body


def test_a_gigabyte_is_refused_before_it_is_read(studio):
    with socket.create_connection(("127.0.0.1", studio.port), timeout=20) as raw:
        head = f"POST /{TOKEN}/api/images?name=a.png HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\n"
        raw.sendall(f"{head}Content-Length: {1 << 30}\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_gigabyte_in_pieces_is_refused_at_the_limit(studio):
    """Without a length: whoever sends it can send little more than the limit."""
    sent = 0
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=60)
    connection.putrequest("POST", f"/{TOKEN}/api/images?name=a.png")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    piece = bytes(1 << 20)
    try:
        while sent < 1 << 30:
            connection.send(b"100000\r\n" + piece + b"\r\n")
            sent += len(piece)
    except OSError:
        pass
    connection.close()
    assert sent < (studio.workbench.limits.image_bytes + (64 << 20))


def test_images_are_refused_by_their_headers(studio):
    huge = bytearray(narrow())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    refusals = {bytes(huge): "exceeds the limit of 64000000 pixels", b"GIF89a": "JPEG, PNG or WebP"}
    refusals |= {narrow()[:40]: "damaged", b"": "JPEG, PNG or WebP", narrow(1, 400): "too narrow"}
    for data, message in refusals.items():
        refused = studio.ask("api/images?name=a.png", data, method="POST")
        assert refused.status in {400, 413}
        assert message in refused.error


WRONG = [
    ([], "names no image"),
    ({}, "names no image"),
    ({"image": "0" * 32}, "no longer kept"),
    ({"model": "/etc/passwd"}, "there is no choice 'model'"),
    ({"labels": "/etc/passwd"}, "there is no choice 'labels'"),
    ({"methods": "gradcam"}, "'methods' is not a list of names"),
    ({"methods": ["a"] * 2}, "once each"),
    ({"methods": [f"m{i}" for i in range(7)]}, "6 at most"),
    ({"target": True}, "'target' is not a number"),
    ({"target": 999}, "class 999 is out of range"),
    ({"box": 0}, "is no detector"),
    ({"opacity": 2}, "the opacity is 2"),
    ({"colormap": "jett"}, "did you mean 'jet'"),
    ({"methods": ["gradcan"]}, "did you mean 'gradcam'"),
    ({"layer": ["nowhere"]}, "nowhere"),
    ({"preset": "nothing"}, "nothing"),
    ({"preprocess": {"sise": [1, 1]}}, "did you mean 'size'"),
    ({"preprocess": 5}, "neither a name nor a JSON object"),
]


@pytest.mark.parametrize(("choices", "message"), WRONG, ids=[str(choices)[:40] for choices, _ in WRONG])
def test_wrong_choices_are_refused_in_a_sentence(studio, image, choices, message):
    given = {"image": image, **choices} if choices and "image" not in choices else choices
    answer = studio.ask("api/explain", given, method="POST")
    error = answer.error if answer.status != 200 else answer.body.decode().splitlines()[-1]
    assert message in error
    assert "Traceback" not in error


def test_files_of_this_computer_cannot_be_named_in_a_request(studio, image, tmp_path):
    """A preprocessing may be a JSON file on the command line, but not from the page."""
    (tmp_path / "p.json").write_text('{"size": [96, 96]}')
    error = studio.ask("api/explain", {"image": image, "preprocess": str(tmp_path / "p.json")}).error
    assert "unknown preprocessing" in error


def test_every_response_has_the_headers(studio):
    for path in ("", "studio.js", "nothing", "api/model", "api/sheets/none.png"):
        headers = {name.lower(): value for name, value in studio.ask(path).headers.items()}
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers or "uvicorn" in headers["server"]


# One explanation at a time


def test_an_explanation_that_nobody_waits_for_ends(studio, image):
    head = f"POST /{TOKEN}/api/explain HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\n"
    body = f'{{"image": "{image}", "methods": ["rise"]}}'
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", studio.port), timeout=20) as raw:
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while b'"total": 4000' not in raw.recv(65536):
            pass
    assert studio.explain(image, methods=["gradcam"])["scores"]
    assert time.monotonic() - begun < 8, "RISE took its 4000 runs"


def test_the_queue_is_bounded():
    jobs, go, events = Jobs(pending=2), threading.Event(), []
    jobs.submit(lambda _: go.wait(20), events.append)
    time.sleep(0.1)
    waiting = [jobs.submit(lambda _: "late", events.append) for _ in range(2)]
    with pytest.raises(ServerError, match="too many explanations wait already") as caught:
        jobs.submit(lambda _: None, events.append)
    assert caught.value.status == 429
    waiting[0].cancel()
    go.set()
    for _ in range(100):
        if {"answer": "late"} in events:
            break
        time.sleep(0.02)
    time.sleep(0.1)
    assert events == [{"answer": True}, {"answer": "late"}], "the one that was cancelled did not run"


def test_what_goes_wrong_in_a_job_is_said_and_the_next_one_runs():
    jobs, events = Jobs(), []

    def broken(error):
        raise error

    for error in (InputError("no such thing"), MemoryError(), ZeroDivisionError("by zero")):
        jobs.submit(lambda _, error=error: broken(error), events.append)
    jobs.submit(lambda _: 1, events.append)
    for _ in range(100):
        if len(events) == 4:
            break
        time.sleep(0.02)
    assert events[0] == {"error": "no such thing"}
    assert events[1]["error"].startswith("there is not enough memory")
    assert "ZeroDivisionError: by zero" in events[2]["error"]
    assert events[3] == {"answer": 1}


def test_what_is_kept_is_bounded(model, monkeypatch):
    monkeypatch.setattr(benches, "MOST_IMAGES", 3)
    bench = Workbench(model, spoken=flags)
    for i in range(5):
        bench.add(f"{i}.png", narrow(8 + i))
    assert [image["name"] for image in bench.images()] == ["2.png", "3.png", "4.png"]


# The command


def test_the_command_serves_until_it_is_interrupted(model, photo):
    words = [sys.executable, "-m", "onnx_gradcam", "studio", str(model), str(photo)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = line.split()[-1]
        host, token = address.removeprefix("http://").split("/")[:2]
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", f"/{token}/api/model")
        assert connection.getresponse().status == 200
        connection.close()
        assert host.startswith("127.0.0.1:")
        assert len(token) >= 32
        process.send_signal(2)
        _, errors = process.communicate(timeout=20)
    assert process.returncode in {0, 130}
    assert errors == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.onnx"], "nothing.onnx"),
        (["MODEL", "nothing.png"], "nothing.png"),
        (["MODEL", "--labels", "nothing.txt"], "nothing.txt"),
        (["MODEL", "--method", "gradcan"], "did you mean 'gradcam'"),
        (["MODEL", "--port", "PORT"], "cannot be had (Address already in use); choose another with --port"),
    ],
)
def test_the_command_refuses_in_one_sentence(model, words, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MODEL": str(model), "PORT": str(taken.getsockname()[1])}
        result = CliRunner().invoke(app, ["studio", *(place.get(word, word) for word in words)])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_class_is_named_where_its_name_is_unique():
    labels = ["cat", "dog", "dog", "7", "top3", "a, b", "", "-x", "Cat food"]
    for index, word in enumerate(["cat", "1", "2", "3", "4", "5", "6", "7", "'Cat food'"]):
        command = explain_command("m.onnx", "i.png", Recipe(target=index), {}, labels, flags)
        assert command == f"onnx-gradcam explain m.onnx i.png -o i_gradcam.png --target {word}"


def test_choices_are_said_as_flags():
    assert flags({"bake": {"size": "8", "other": [1]}}) == ["--bake", "size=8", "--bake", "other=[1]"]
    said = flags({"layer": ["a", "b"], "eigen_smooth": True, "output": ["y"], "box": 3, "preprocess": {"size": [1, 2]}})
    assert said[:7] == ["--layer", "a", "--layer", "b", "--eigen-smooth", "--output", "y"]
    assert said[7:] == ["--box-index", "3", "--preprocess", '{"size": [1, 2]}']


def test_errors_are_the_packages_own():
    assert issubclass(ServerError, ExplainError)
