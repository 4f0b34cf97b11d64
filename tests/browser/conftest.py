"""A Chromium for the pages of this package."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading

import pytest
from support.web_pages import launched

from onnx_gradcam.errors import InputError
from onnx_gradcam.web.building import build_page
from onnx_gradcam.web.runtime_files import runtime_files


@pytest.fixture(scope="session")
def chromium():
    with launched("--enable-unsafe-swiftshader") as browser:
        yield browser


@pytest.fixture(scope="session")
def runtime():
    """The files of onnxruntime-web, downloaded once."""
    try:
        return runtime_files()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A plain web server: its folder and its address."""
    root = tmp_path_factory.mktemp("host")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def publish(host, runtime):
    """Build the page of a model; returns its address."""
    root, address = host
    names = map("site{}".format, itertools.count())

    def build(model, **choices):
        name = next(names)
        build_page(model, root / name, runtime=runtime, **choices)
        return f"{address}/{name}/"

    return build


@pytest.fixture(scope="session")
def shapes(publish, repository):
    """The page of the demo classifier, whose classes do not exclude each other."""
    return publish(repository / "models" / "shapes.onnx", probabilities="sigmoid")
