"""`onnx-gradcam methods` and `onnx-gradcam ops`: what the registries hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer

from ._options import Json
from ._output import say, say_json, table

__all__ = ["methods", "ops"]


def methods(
    *,
    presets: Annotated[bool, typer.Option("--presets", help="List presets, not methods.")] = False,
    as_json: Json = False,
) -> None:
    """List methods and presets.

    A preset serves the methods that were compared with its library; `functions` says what each was compared with.

    \b
    Example:
      onnx-gradcam methods
      onnx-gradcam methods --presets
    """  # noqa: D301 - \b keeps the lines of the example apart
    from onnx_gradcam.editor.methods.catalogue import methods as registered  # noqa: PLC0415 - --help must not wait for it
    from onnx_gradcam.editor.presets import PRESETS  # noqa: PLC0415

    if presets:
        _list("preset", PRESETS.values(), ("title", "source", "functions"), as_json=as_json)
    else:
        _list("method", registered().values(), ("title", "family", "cost", "reference"), as_json=as_json)


def _list(kind: str, entries: Iterable[Any], fields: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        say_json([{kind: e.name, **{field: getattr(e, field) for field in fields}} for e in entries])
    else:
        say(table([(kind, *fields), *((e.name, *(_text(getattr(e, f)) for f in fields)) for e in entries)], indent=""))


def _text(content: str | Mapping[str, str]) -> str:
    """A text as it is; names with their meanings as `name (meaning), ...`."""
    return content if isinstance(content, str) else ", ".join(f"{name} ({what})" for name, what in content.items())


def ops(*, as_json: Json = False) -> None:
    """List differentiable operators.

    For each input, the list says how its gradient is computed: by a `rule`, by an `expansion` of the operator into
    simpler ones, or by a `decomposition` into standard operators when the model is loaded. The gradient of some inputs
    is `zero` everywhere. A model is refused if it needs the gradient of an input marked `none`.

    \b
    Example:
      onnx-gradcam ops
      onnx-gradcam ops --json
    """  # noqa: D301 - \b keeps the lines of the example apart
    from onnx_gradcam.autodiff.coverage import coverage  # noqa: PLC0415 - --help must not wait for it

    rows = coverage()
    if as_json:
        say_json([asdict(row) for row in rows])
        return
    lines = []
    for (domain, operator, since), group in groupby(rows, key=lambda r: (r.domain, r.operator, r.since_version)):
        inputs = ", ".join(f"{row.input}: {row.support}" for row in group)
        lines.append((f"{domain}.{operator}" if domain else operator, str(since), inputs))
    say(table([("operator", "opset", "inputs"), *lines], indent=""))
    differentiable = [row for row in rows if row.differentiable]
    served = sum(row.support != "none" for row in differentiable)
    say(f"{served} of the {len(differentiable)} inputs that ONNX calls differentiable are served.")
