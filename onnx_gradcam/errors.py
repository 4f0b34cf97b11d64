"""The exception tree. Every message is one sentence that names the culprit and the remedy.

::

    ExplainError                 anything this package refuses or fails at
    ├── ModelError               the file is no usable ONNX model (damaged, unsafe, missing weights)
    ├── TargetError              the score, layer or class asked for is not in the model
    ├── UnsupportedError         the model is fine, but a gradient through one of its nodes cannot be had
    ├── ExportError              a framework's file that cannot be converted, or what converting it takes is missing
    ├── ShapeError               two shapes that have to agree do not
    ├── PreprocessingError       a preprocessing description or label file that makes no sense
    ├── ImageError               a picture that cannot be read, or is too large
    ├── RuntimeProviderError     an execution provider that is not there, or a session that fails
    ├── RequestError             a request to a server that is malformed, too large, too many or too late
    └── BatchError               a run over many pictures that cannot be begun, continued or finished
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BatchError",
    "ExplainError",
    "ExportError",
    "ImageError",
    "ModelError",
    "PreprocessingError",
    "RequestError",
    "RuntimeProviderError",
    "ShapeError",
    "TargetError",
    "UnsupportedError",
    "near_matches",
]


class ExplainError(Exception):
    """Base of everything this package raises on purpose."""


class ModelError(ExplainError):
    """The file is no usable ONNX model."""


class TargetError(ExplainError):
    """The score, the layer or the class asked for is not in the model."""


class UnsupportedError(ExplainError):
    """A gradient through a node of the model cannot be had."""


class ExportError(ExplainError):
    """A framework's file cannot be converted, or what converting it takes is not installed."""


class ShapeError(ExplainError):
    """Two shapes that have to agree do not."""


class PreprocessingError(ExplainError):
    """A preprocessing description or a label file that makes no sense."""


class ImageError(ExplainError):
    """A picture that cannot be read, or is too large."""


class RuntimeProviderError(ExplainError):
    """An execution provider that is not there, or a session that fails."""


class RequestError(ExplainError):
    """A request to a server that is refused.

    Attributes:
        status: the HTTP status that says why: 400 malformed, 413 too large, 429 too many, 504 too late ...
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class BatchError(ExplainError):
    """A run over many pictures that cannot be begun, continued or finished."""


def near_matches(wanted: str, known: Iterable[str], limit: int = 5) -> str:
    """Say which of `known` look like `wanted`: the tail of an error message, empty when nothing does."""
    names = {name.casefold(): name for name in known}
    close = [names[name] for name in difflib.get_close_matches(wanted.casefold(), list(names), n=limit, cutoff=0.5)]
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
