"""What `serve` does: start the server, and say how to install it where it is missing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import InputError
from onnx_gradcam.serve.limits import Limits

__all__ = ["run"]


def run(
    model: Path, *, name: str | None, host: str, ports: tuple[int, int, int], limits: dict[str, Any], **options: Any
) -> None:
    """Serve until a signal comes.

    Raises:
        ExplainError: the model cannot be served, a port is taken, or MLServer is not installed.
    """
    try:
        server = importlib.import_module("onnx_gradcam.serve.server")
    except ModuleNotFoundError as error:
        raise InputError(
            f"the server needs {error.name}, which is not installed; run `pip install '.[serve]'` in a clone "
            "(Python 3.10 to 3.12)"
        ) from error
    http, grpc, metrics = ports
    address = server.Address(host=host, http=http, grpc=grpc, metrics=metrics)
    server.serve(model, name=name, address=address, limits=Limits(**limits), **options)
