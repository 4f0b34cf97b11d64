"""What is visible is what is meant to be."""

from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

import onnx_gradcam

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(onnx_gradcam.__path__, "onnx_gradcam.") if not m.name.endswith("__main__")
)


def test_public_names():
    assert sorted(onnx_gradcam.__all__) == [
        "Box",
        "ExplainError",
        "Explained",
        "Explainer",
        "Explanation",
        "Options",
        "Selection",
        "__version__",
        "attach",
        "batch",
        "check_gradients",
        "compare",
        "drift",
        "evaluate",
        "export",
        "inspect",
        "method_sheet",
        "methods",
        "presets",
        "report",
        "text_classifier",
        "verify",
    ]
    assert set(onnx_gradcam.__all__) <= set(dir(onnx_gradcam))
    for name in onnx_gradcam.__all__:
        assert getattr(onnx_gradcam, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'explain'"):
        _ = onnx_gradcam.explain  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MODULES)
def test_every_listed_name_is_there_once(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("onnx_gradcam"):
            raise
        pytest.skip(f"it takes {missing.name}, which is not installed")
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert not [n for n in listed if not hasattr(module, n)]


def test_no_submodule_hides_a_public_name():
    """Importing a submodule binds its name in the package, whatever the package means by that name."""
    submodules = {m.name for m in pkgutil.iter_modules(onnx_gradcam.__path__)}
    assert not submodules & set(onnx_gradcam.__all__)


def test_nothing_else_is_visible():
    """But for submodules that have been imported, and what the lazy import itself is made of."""
    tools = {"TYPE_CHECKING", "Any", "annotations", "importlib"}
    visible = {n for n, value in vars(onnx_gradcam).items() if not isinstance(value, types.ModuleType)} - tools
    assert {n for n in visible if not n.startswith("_")} <= set(onnx_gradcam.__all__)


def test_every_public_thing_says_what_it_is():
    for name in onnx_gradcam.__all__:
        if not name.startswith("__"):
            assert getattr(onnx_gradcam, name).__doc__
