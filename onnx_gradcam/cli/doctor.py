"""`onnx-gradcam doctor`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
from typing import Any

from onnx_gradcam import __version__

from ._options import Json
from ._output import say, say_json, table
from .studio import STUDIO_NEEDS, STUDIO_REMEDY

__all__ = ["doctor"]

_PACKAGES = ("numpy", "onnx", "onnx_ir", "onnxruntime", "cv2")
_RUNTIMES = (
    "onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn",
    "onnxruntime-rocm", "onnxruntime-training",
)  # fmt: skip
"""Distributions that all install the package `onnxruntime`; the one to keep comes first."""


def doctor(*, as_json: Json = False) -> None:
    """Diagnose the installation.

    \b
    Example:
      onnx-gradcam doctor

    Prints versions, the execution providers that start, whether images can be read and the studio can start, the opsets
    that are understood, and whether several ONNX Runtimes overwrite each other.
    """  # noqa: D301 - \b keeps the lines of the example apart
    findings = _examine()
    if as_json:
        say_json(findings)
        return
    versions = {"onnx-gradcam": findings["onnx_gradcam"], "python": findings["python"], **findings["packages"]}
    say(table([(name, version or "missing") for name, version in versions.items()], indent=""))
    say(f"system: {findings['system']}")
    say("execution providers" + ("" if findings["providers"] else ": none"))
    for provider in findings["providers"]:
        say(f"  {provider['name']}: {'starts' if provider['starts'] else provider['reason']}")
    if findings["runtimes_reason"]:
        say(f"ONNX Runtime: {findings['runtimes_reason']}")
    say("images: " + ("can be read and drawn" if findings["images"] else findings["images_reason"]))
    lacking = findings["studio_lacks"]
    say("studio: " + (f"needs {' and '.join(lacking)}; {STUDIO_REMEDY}" if lacking else "can be started"))
    for name, failure in findings["failures"].items():
        say(f"{name} cannot be imported: {failure}")
    if findings["opsets"]:
        low, high = findings["opsets"]["raised_to"], findings["opsets"]["newest"]
        runs = findings["opsets"]["runs"]
        limit = "" if runs is None else f", and this ONNX Runtime runs them up to {runs}"
        say(f"opsets: up to {high} are understood{limit}; models below {low} are raised to it when they are explained")


def _examine() -> dict[str, Any]:
    results = {name: _import(name) for name in _PACKAGES}
    failures = {name: failure for name, (_, failure) in results.items() if failure}
    return {
        "onnx_gradcam": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name, (version, _) in results.items()},
        "failures": failures,
        "providers": [] if {"onnx", "onnxruntime"} & failures.keys() else _providers(),
        **_runtimes(),
        **_images(failures),
        "studio_lacks": [name for name in STUDIO_NEEDS if importlib.util.find_spec(name) is None],
        "opsets": {} if "onnx" in failures else _opsets(failures),
    }


def _import(name: str) -> tuple[str | None, str]:
    """The version of a package, and why it cannot be imported."""
    try:
        return str(importlib.import_module(name).__version__), ""
    # A damaged package fails with whatever its import runs into, and that is what is asked here.
    except Exception as exc:  # noqa: BLE001
        return None, f"{type(exc).__name__}: {exc}"


def _providers() -> list[dict[str, Any]]:
    """Every execution provider, and whether a session with a model of one node starts on it."""
    from onnx_gradcam.runtime.session import available_providers  # noqa: PLC0415 - --help must not wait for it

    reasons = {name: _failure(18, name) for name in available_providers()}
    return [{"name": name, "starts": reason is None, "reason": reason} for name, reason in reasons.items()]


def _failure(opset: int, provider: str = "cpu") -> str | None:
    """Why a model of one node does not start; `None` where it does."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - --help must not wait for it

    from onnx_gradcam.errors import ExplainError  # noqa: PLC0415
    from onnx_gradcam.runtime.session import Session  # noqa: PLC0415

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one_node", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        Session(model.SerializeToString(), provider=provider)
    except ExplainError as exc:
        return str(exc)
    return None


def _runtimes() -> dict[str, Any]:
    """The distributions that install the package `onnxruntime`, and what is wrong if there are several."""
    versions: dict[str, str] = {}
    for name in _RUNTIMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    if len(versions) < 2:
        return {"runtimes": versions, "runtimes_reason": None}
    installed = " and ".join(f"{name} {version}" for name, version in versions.items())
    remedy = f"pip uninstall -y {' '.join(versions)} && pip install {next(iter(versions))}"
    reason = f"{installed} are installed in one environment and overwrite each other; run `{remedy}`"
    return {"runtimes": versions, "runtimes_reason": reason}


def _images(failures: dict[str, str]) -> dict[str, Any]:
    if "cv2" not in failures:
        return {"images": True, "images_reason": None}
    swap = "run `pip uninstall -y opencv-python && pip install opencv-python-headless`, which needs no graphics"
    remedy = swap if "lib" in failures["cv2"] else "reinstall it"
    return {"images": False, "images_reason": f"cv2 cannot be imported ({failures['cv2']}); {remedy}"}


def _opsets(failures: dict[str, str]) -> dict[str, int | None]:
    """The opset models are raised to, the newest that onnx understands, and the newest that ONNX Runtime runs."""
    import onnx  # noqa: PLC0415 - --help must not wait for it

    from onnx_gradcam.graph.read import MIN_OPSET  # noqa: PLC0415

    newest = onnx.defs.onnx_opset_version()
    tried = () if "onnxruntime" in failures else range(newest, MIN_OPSET - 1, -1)
    runs = next((opset for opset in tried if _failure(opset) is None), None)
    return {"raised_to": MIN_OPSET, "newest": newest, "runs": runs}
