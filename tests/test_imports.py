"""Imports run one way, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnx_gradcam

PACKAGE = Path(onnx_gradcam.__file__).parent

# Each part may import what is named, itself, and nothing else of the package.
ALLOWED = {
    "errors": set(),
    "preprocessing": {"errors"},
    "metadata": {"errors"},
    "graph": {"errors"},
    "autodiff": {"errors", "graph"},
    "resizing": {"errors", "graph"},
    "methods": {"errors", "graph", "resizing"},
    "targets": {"errors", "graph"},
    "heatmap": {"errors", "graph", "resizing"},
    "presets": {"errors", "graph", "heatmap", "resizing"},
    "linearize": {"errors", "graph", "targets"},
    "options": {"autodiff", "targets"},
    "plan": {"errors", "options", "graph", "autodiff", "methods", "presets", "targets", "linearize", "metadata"},
    "quantities": {"errors", "graph", "autodiff", "methods", "targets", "linearize", "plan"},
    "attachment": {"errors", "graph", "autodiff", "options", "targets", "metadata", "plan", "quantities"},
    "export": {"errors", "graph", "targets", "autodiff", "metadata", "preprocessing", "runtime.session"},
    "probing": {"errors", "graph", "metadata", "options", "plan", "presets", "quantities", "attachment"},
    "runtime.session": {"errors"},
    "runtime.image": {"errors", "preprocessing"},
    "runtime": {
        *{"errors", "graph", "preprocessing", "metadata", "methods", "options", "targets", "plan", "attachment"},
        "probing",
    },
    "evaluate": {
        *("errors", "graph", "targets", "autodiff", "metadata", "options", "plan", "quantities", "attachment"),
        *("probing", "runtime"),
    },
    "batch": {"errors", "runtime"},
    "required_class": {"errors", "graph", "metadata", "attachment"},
    "serve": {"errors", "metadata", "preprocessing", "runtime", "graph", "attachment", "plan", "required_class"},
    "web": {"errors", "metadata", "preprocessing", "runtime", "graph", "required_class"},
}
ANYTHING = {"cli", "__main__", "__init__"}
"""What nothing imports may import everything."""


def part(module: str) -> str:
    name = module.removeprefix("onnx_gradcam.")
    return name if name in ALLOWED else name.split(".")[0]


def imported(path: Path, module: str) -> Iterator[str]:
    """The modules of the package that a file imports anywhere, lazily or not."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("onnx_gradcam."))
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(p for p in (base, node.module) if p)
            if source == "onnx_gradcam":
                yield from (f"onnx_gradcam.{a.name}" for a in node.names if a.name != "__version__")
            elif source.startswith("onnx_gradcam."):
                yield source


FILES = {
    path: ".".join(("onnx_gradcam", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_imports_run_one_way(path):
    module = FILES[path]
    mine = part(module)
    if mine in ANYTHING or module == "onnx_gradcam":
        return
    assert mine in ALLOWED, f"say in ALLOWED what {module} may import"
    for other in imported(path, module):
        theirs = part(other)
        same = theirs == mine or theirs.split(".")[0] == mine.split(".")[0]
        assert same or theirs.split(".")[0] in {a.split(".")[0] for a in ALLOWED[mine]}, f"{module} imports {other}"
        if mine in {"runtime.session", "runtime.image"}:
            assert theirs != "runtime" or other.endswith("image_header"), f"{module} imports {other}"


@pytest.mark.parametrize(
    ("module", "only"),
    [("onnxruntime", {"onnx_gradcam.runtime.session", "onnx_gradcam.cli.doctor"}), ("cv2", None)],
)
def test_one_module_alone_imports_a_heavy_library(module, only):
    users = set()
    for path, name in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(n.split(".")[0] == module for n in names):
                users.add(name)
    if only is not None:
        assert users <= only
    assert all(name.startswith(("onnx_gradcam.runtime.", "onnx_gradcam.cli.")) for name in users)


def loaded_by(code: str) -> set[str]:
    heavy = ("numpy", "onnx", "onnx_ir", "onnxruntime", "cv2", "google.protobuf")
    check = f"{code}\nimport sys\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["onnx_gradcam", "onnx_gradcam.errors", "onnx_gradcam.cli"])
def test_nothing_heavy_is_loaded_at_first(module):
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("module", ["onnx_gradcam.runtime.session", "onnx_gradcam.images.decoding"])
def test_running_needs_no_graph_code(module):
    assert not loaded_by(f"import {module}") & {"onnx", "onnx_ir", "google.protobuf"}


def test_the_graph_side_needs_no_runtime():
    assert not loaded_by("import onnx_gradcam.editor.attachment") & {"onnxruntime", "cv2"}
