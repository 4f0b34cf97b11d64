"""The exceptions of the package, by what went wrong. Every message names the culprit and the remedy.

::

    ExplainError             base of everything this package raises on purpose
    ├── InputError           something the user gave: a path, a value, an image, an option
    │   └── NothingFoundError    an image in which a detector finds nothing to explain
    ├── ModelError           the model is damaged, unsafe, incomplete, or fails when it runs
    ├── TargetError          the score, layer or class asked for is not in the model
    ├── UnsupportedError     the model is valid, but cannot be explained in the way asked for
    ├── ExportError          a framework's model cannot be exported, or what that needs is not installed
    └── ServerError          a server refuses a request
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["ExplainError", "ExportError", "InputError", "ModelError", "NothingFoundError", "ServerError", "TargetError"]
__all__ += ["UnsupportedError", "near_matches", "reason", "same_name"]

_IGNORED = str.maketrans("", "", "-_ ")


class ExplainError(Exception):
    """Base of everything this package raises on purpose; names of untrusted files are shortened in the message.

    Example::

        try:
            attach("model.onnx").save("explained.onnx")
        except ExplainError as error:
            print(error)  # one sentence: what is wrong, and what to do
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_shortened(message))


class InputError(ExplainError):
    """Something the user gave cannot be used: a path, a value, an image, an option."""


class NothingFoundError(InputError):
    """A detector finds nothing in an image, or nothing of what was asked for."""


class ModelError(ExplainError):
    """The model is damaged, unsafe or incomplete, or fails when it runs."""


class TargetError(ExplainError):
    """The score, the layer or the class asked for is not in the model."""


class UnsupportedError(ExplainError):
    """The model is valid, but cannot be explained in the way asked for."""


class ExportError(ExplainError):
    """A framework's model cannot be exported, or what that needs is not installed."""


class ServerError(ExplainError):
    """A server refuses a request.

    Attributes:
        status: the HTTP status: 400 malformed, 413 too large, 429 too many, 504 too late ...
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


_LONGEST_WORD = 300
_LONGEST_MESSAGE = 2000
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD},}}")
_NEAR = 0.65
"""The least similarity of a suggestion; with less, Embedding would suggest ZeroPadding3D."""


def near_matches(name: str, choices: Iterable[str], limit: int = 5) -> str:
    """The tail of an error message that suggests names like `name`, empty if none is near; see `same_name`."""
    spellings = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(name), list(spellings), n=limit, cutoff=_NEAR)
    close = [spellings[spelling] for spelling in near]
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def same_name(name: str, choices: Iterable[str]) -> str | None:
    """The name of a choice in another spelling; case, hyphens, underscores and spaces do not count."""
    return {_plain(choice): choice for choice in choices}.get(_plain(name))


def reason(error: BaseException, limit: int = 200) -> str:
    """Another library's exception in one line: its first line, shortened; its type if it is empty.

    Of an operating system's error only what went wrong is kept, not its number and its path.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = next(iter(str(error).strip().splitlines()), "").strip().rstrip(".:")
    if not line:
        return type(error).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _shortened(message: str) -> str:
    """The message without the middle of its longest words, and of itself if it is still too long."""
    short = _LONG_WORD.sub(lambda word: f"{word[0][:150]}...{word[0][-50:]}", message)
    return short if len(short) <= _LONGEST_MESSAGE else f"{short[: _LONGEST_MESSAGE - 500]} ... {short[-400:]}"


def _plain(name: str) -> str:
    return name.casefold().translate(_IGNORED)
