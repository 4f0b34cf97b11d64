"""`onnx-gradcam ops`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby

from ._options import Json
from ._output import say, say_json, table

__all__ = ["ops"]


def ops(*, as_json: Json = False) -> None:
    """List the operators that a gradient can cross, input by input.

    A gradient crosses an input by a `rule` of its own, by an `expansion` of the operator into simpler ones, or not
    because it is `zero` everywhere; a `decomposition` writes the operator in standard ones when the model is loaded.
    A model whose gradient would have to cross an input marked `none` is refused.

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
