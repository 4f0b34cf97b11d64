"""`onnx-gradcam methods`."""

from __future__ import annotations

from .options import Json
from .output import say, say_json, table

__all__ = ["methods"]


def methods(*, as_json: Json = False) -> None:
    """List the methods that `explain` and `attach` take with --method.

    \b
    Example:
      onnx-gradcam methods
    """  # noqa: D301 - \b keeps the lines of the example apart
    from onnx_gradcam.methods.registry import methods as registered  # noqa: PLC0415 - --help must not wait for it

    found = list(registered().values())
    if as_json:
        say_json([{"method": m.name, "title": m.title, "reference": m.reference} for m in found])
    else:
        say(table([("method", "title", "reference"), *((m.name, m.title, m.reference) for m in found)], indent=""))
