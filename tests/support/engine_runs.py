"""Runs models on the engines of `onnx_gradcam.editor.engines` that are installed, for tests and benchmarks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__all__ = ["ENGINES", "SWITCHES", "TABS", "AbsentError", "Feeds", "Run", "Tabs", "package"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Run = Callable[[onnx.ModelProto, Sequence[Feeds], list[str]], list[list[Array]]]
"""The outputs of these names for each of several feeds."""


class AbsentError(Exception):
    """The engine is not here; the message says how to get it."""


def openvino(model: onnx.ModelProto, sets: Sequence[Feeds], names: list[str]) -> list[list[Array]]:
    """OpenVINO's CPU plugin, in float32."""
    try:
        core = import_module("openvino").Core()
    except ImportError as exc:
        raise AbsentError("OpenVINO is not installed: pip install openvino") from exc
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1},
    )
    answers = []
    for feeds in sets:
        results = compiled(dict(feeds))
        answers.append([np.array(results[compiled.output(name)]) for name in names])
    return answers


def openvino_provider(model: onnx.ModelProto, sets: Sequence[Feeds], names: list[str]) -> list[list[Array]]:
    """OpenVINO as an execution provider of ONNX Runtime, in float32."""
    if "OpenVINOExecutionProvider" not in ort.get_available_providers():
        raise AbsentError("onnxruntime-openvino is not installed")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    chosen = [("OpenVINOExecutionProvider", {"device_type": "CPU", "precision": "FP32", "num_of_threads": "1"})]
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=chosen)
    return [session.run(names, dict(feeds)) for feeds in sets]


def opencv(model: onnx.ModelProto, sets: Sequence[Feeds], names: list[str]) -> list[list[Array]]:
    """OpenCV's own engine."""
    cv2 = import_module("cv2")
    if int(cv2.__version__.split(".")[0]) < 5:
        raise AbsentError("OpenCV 4 takes no class input; install OpenCV 5")
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    answers = []
    for feeds in sets:
        for name, value in feeds.items():
            net.setInput(value, name)
        answers.append([np.array(value) for value in net.forward(names)])
    return answers


SCRIPT = Path(__file__).resolve().parents[1] / "engines" / "run.js"
INSTALL = "npm install --ignore-scripts, and name its node_modules in NODE_PATH"


def package(name: str) -> Path:
    """The folder of an npm package."""
    found = [Path(folder) / name for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    folder = next(filter(Path.is_dir, found), None)
    if folder is None:
        raise AbsentError(f"there is no {name}: {INSTALL}")
    return folder


def _job(model: onnx.ModelProto, sets: Sequence[Feeds], names: list[str], provider: str) -> dict[str, Any]:
    """What `run.js` is asked."""

    def text(value: bytes) -> str:
        return base64.b64encode(value).decode()

    tensors = [
        {name: {"type": str(v.dtype), "dims": v.shape, "data": text(v.tobytes())} for name, v in feeds.items()}
        for feeds in sets
    ]
    options = {"executionProviders": [provider], "logSeverityLevel": 3}
    return {"model": text(model.SerializeToString()), "sets": tensors, "outputs": names, "options": options}


def _answered(answers: list[list[dict[str, Any]]]) -> list[list[Array]]:
    """The arrays that `run.js` answers with."""
    return [
        [np.frombuffer(base64.b64decode(a["data"]), a["type"]).reshape(a["dims"]) for a in answer] for answer in answers
    ]


def node(model: onnx.ModelProto, sets: Sequence[Feeds], names: list[str]) -> list[list[Array]]:
    """onnxruntime-node."""
    program = shutil.which("node")
    if program is None:
        raise AbsentError("Node.js is not installed")
    package("onnxruntime-node")
    asked = json.dumps(_job(model, sets, names, "cpu"))
    done = subprocess.run([program, SCRIPT], input=asked, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return _answered(json.loads(done.stdout))


ENGINES: dict[str, Run] = {
    "openvino": openvino,
    "onnxruntime-openvino": openvino_provider,
    "opencv": opencv,
    "node": node,
}
TABS = {
    "web": ("ort.wasm.min.mjs", "wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "webgpu"),
}
"""The module of onnxruntime-web and the execution provider, by the name of the engine."""

SWITCHES = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
"""Of Chromium: WebGPU on the processor."""
_SITE = "https://engines.test/"  # a page of a secure context, which WebGPU asks for; no request leaves the browser
_ADAPTER = "async () => navigator.gpu ? (await navigator.gpu.requestAdapter())?.info.description ?? null : null"
_START = """async file => {
  const ort = await import(`/${file}`);
  ort.env.wasm.numThreads = 1;
  globalThis.ort = ort;
}"""


class Tabs:
    """Tabs of a Chromium that was started with `SWITCHES`: one for each of `TABS`, opened when it is asked for."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self._opened: dict[str, Any] = {}

    def __call__(self, name: str) -> Run:
        """What runs models on one of `TABS`."""
        return partial(self._run, name)

    def _run(self, name: str, model: onnx.ModelProto, sets: Sequence[Feeds], names: list[str]) -> list[list[Array]]:
        if name not in self._opened:
            self._opened[name] = self._tab(*TABS[name])
        asked = _job(model, sets, names, TABS[name][1])
        return _answered(self._opened[name].evaluate("job => run(ort, job)", asked))

    def _tab(self, module: str, provider: str) -> Any:
        files = package("onnxruntime-web") / "dist"

        def serve(route: Any) -> None:
            name = route.request.url.removeprefix(_SITE)
            if name:
                route.fulfill(path=files / name)
            else:
                route.fulfill(body="<!doctype html>", content_type="text/html")

        page = self._chromium.new_page()
        page.set_default_timeout(600_000)
        page.route(f"{_SITE}**", serve)
        page.goto(_SITE)
        if provider == "webgpu" and page.evaluate(_ADAPTER) is None:
            raise AbsentError("this Chromium has no WebGPU")
        page.add_script_tag(path=SCRIPT)
        page.evaluate(_START, module)
        return page
