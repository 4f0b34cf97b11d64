"""See what an ONNX vision model looks at, and add heatmap outputs to it, computed in the graph."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autodiff.check import check_gradients
    from .batching.running import batch
    from .editor.attachment import Explained
    from .editor.methods.catalogue import methods
    from .editor.presets import presets
    from .errors import ExplainError
    from .evaluation.audit import report
    from .evaluation.comparison import compare
    from .evaluation.drift import drift
    from .evaluation.experiment import evaluate
    from .evaluation.inspection import inspect
    from .evaluation.verification import verify
    from .exporters.sources import export
    from .options import Options
    from .runtime.answers import Box
    from .runtime.attaching import attach
    from .runtime.detections import Selection
    from .runtime.explainer import Explainer, Explanation
    from .runtime.explanation import method_sheet
    from .runtime.texts import text_classifier

__version__ = "0.1.0"

__all__ = [
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

_HOMES = {
    "Box": "runtime.answers",
    "ExplainError": "errors",
    "Explained": "editor.attachment",
    "Explainer": "runtime.explainer",
    "Explanation": "runtime.explainer",
    "Options": "options",
    "Selection": "runtime.detections",
    "attach": "runtime.attaching",
    "batch": "batching.running",
    "check_gradients": "autodiff.check",
    "compare": "evaluation.comparison",
    "drift": "evaluation.drift",
    "evaluate": "evaluation.experiment",
    "export": "exporters.sources",
    "inspect": "evaluation.inspection",
    "method_sheet": "runtime.explanation",
    "methods": "editor.methods.catalogue",
    "presets": "editor.presets",
    "report": "evaluation.audit",
    "text_classifier": "runtime.texts",
    "verify": "evaluation.verification",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import onnx_gradcam` loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
