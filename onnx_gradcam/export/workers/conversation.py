"""How a worker is asked and how it answers; imports nothing beyond the standard library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["RefusedError", "serve"]

Work = Callable[[dict[str, Any], Path], dict[str, Any]]


class RefusedError(Exception):
    """What was asked for is not done; the message is the sentence for the user."""


def serve(work: Work, folder: Path) -> None:
    """Do what the request in a folder asks for and leave the answer there.

    Args:
        work: takes the request and the folder, writes `model.onnx` there and gives the answer.
        folder: where `request.json` is.
    """
    try:
        answer = work(json.loads((folder / "request.json").read_text("utf-8")), folder)
    except RefusedError as exc:
        answer = {"refused": str(exc)}
    except ModuleNotFoundError as exc:
        answer = {"missing": exc.name}
    (folder / "answer.json").write_text(json.dumps(answer), "utf-8")
