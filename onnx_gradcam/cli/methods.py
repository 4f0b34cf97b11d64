"""`onnx-gradcam methods`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from ._options import Json
from ._output import say, say_json, table

__all__ = ["methods"]


def methods(
    *,
    presets: Annotated[bool, typer.Option("--presets", help="List what --preset takes instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the methods that `explain` and `attach` take with --method.

    \b
    Example:
      onnx-gradcam methods
      onnx-gradcam methods --presets
    """  # noqa: D301 - \b keeps the lines of the example apart
    from onnx_gradcam.editor.methods.catalogue import methods as registered  # noqa: PLC0415 - --help must not wait for it
    from onnx_gradcam.editor.presets import PRESETS  # noqa: PLC0415

    if presets:
        _list("preset", PRESETS.values(), ("title", "source"), as_json=as_json)
    else:
        _list("method", registered().values(), ("title", "family", "cost", "reference"), as_json=as_json)


def _list(kind: str, entries: Iterable[Any], fields: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        say_json([{kind: e.name, **{field: getattr(e, field) for field in fields}} for e in entries])
    else:
        say(table([(kind, *fields), *((e.name, *(getattr(e, f) for f in fields)) for e in entries)], indent=""))
