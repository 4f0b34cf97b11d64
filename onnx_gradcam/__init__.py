"""Grad-CAM for any ONNX model: the same model comes out with a heatmap output, computed inside the graph."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autodiff.check import check_gradients
    from .editor.attachment import Explained
    from .errors import ExplainError
    from .options import Options
    from .runtime.attaching import attach
    from .runtime.explainer import Explainer, Explanation

__version__ = "0.1.0"

__all__ = [
    "ExplainError",
    "Explained",
    "Explainer",
    "Explanation",
    "Options",
    "__version__",
    "attach",
    "check_gradients",
]

_HOMES = {
    "ExplainError": "errors",
    "Explained": "editor.attachment",
    "Explainer": "runtime.explainer",
    "Explanation": "runtime.explainer",
    "Options": "options",
    "attach": "runtime.attaching",
    "check_gradients": "autodiff.check",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import onnx_gradcam` loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
