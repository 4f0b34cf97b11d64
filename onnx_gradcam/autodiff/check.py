"""The gradient check: compare the gradients that `backward` emits with central differences.

For random directions `u` of an input and `v` of the output, `<v, J u>` by differences of the model equals `<J^T v,
u>` by the emitted graph. Both run in float64 on ONNX's reference evaluator, which shares no code with the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model

from .expand import expand_missing
from .providers import differentiate
from .reference import as_double, evaluate, evaluator

__all__ = ["GradientCheck", "check_gradients", "gradient_model"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GradientCheck:
    """One directional derivative, computed in two ways.

    Attributes:
        wrt: the tensor to differentiate by.
        analytic: the derivative by the emitted graph.
        numeric: the derivative by central differences.
        gradient: the whole gradient, of the tensor's shape.
    """

    wrt: str
    analytic: float
    numeric: float
    gradient: Array

    @property
    def error(self) -> float:
        """The difference, relative to the larger of the two, or absolute where both are below one."""
        return abs(self.analytic - self.numeric) / max(abs(self.analytic), abs(self.numeric), 1.0)

    @property
    def relative(self) -> float:
        """The difference, relative to the larger of the two."""
        return abs(self.analytic - self.numeric) / max(abs(self.analytic), abs(self.numeric), 1e-300)

    def __str__(self) -> str:
        return f"{self.wrt}: analytic {self.analytic:.9g}, numeric {self.numeric:.9g}, error {self.error:.2g}"


def gradient_model(
    source: onnx.ModelProto,
    wrt: Sequence[str],
    output: str | None = None,
    *,
    cotangent: str = "cotangent",
    dtype: npt.DTypeLike | None = None,
    profile: str = "portable",
) -> Model:
    """A model whose outputs are the cotangents of `wrt`, named `grad/<name>`.

    The new input `cotangent` is the cotangent of `output` (the first output by default); `dtype` is the type to compute
    in, by default that of each tensor.

    Raises:
        TargetError: a name is not in the model, or there is no such profile.
        UnsupportedError: a node on the path has no rule, or the profile has no operators for its gradient.
    """
    model = load(source)
    output = output or str(model.core.graph.outputs[0].name)
    expand_missing(model, [output], wrt)
    t = Builder(model)
    values = {name: t.find(name) for name in (output, *wrt)}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise TargetError(f"the model has no tensor {missing[0]!r}")
    y = values[output]
    xs = [value for name in wrt if (value := values[name]) is not None]
    assert y is not None  # noqa: S101 - for the type checker: `missing` is empty
    seed = t.input(cotangent, dtype or y.dtype or np.float32, y.shape)
    gradients = differentiate(t, {y: seed}, xs, profile, dtype=dtype)
    model.core.graph.outputs.clear()
    for x, g in zip(xs, gradients, strict=True):
        t.output(g, f"grad/{x.name}")
    t.finish()
    RemoveUnusedNodesPass()(model.core)
    return model


def check_gradients(
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    wrt: Sequence[str] | None = None,
    output: str | None = None,
    *,
    step: float = 1e-4,
    seed: int = 0,
) -> list[GradientCheck]:
    """Compare emitted gradients with central differences in float64.

    Args:
        model: any model whose operators have rules.
        inputs: a value for each graph input; float32 values are widened.
        wrt: the graph inputs or initializers to differentiate by; every floating-point input by default.
        output: the tensor to differentiate; the first output by default.
        step: half the distance between the two evaluations.
        seed: the seed of the random directions.

    Returns:
        One result for each tensor of `wrt`.

    Raises:
        UnsupportedError: an operator on the way has no rule.

    Example::

        >>> model = onnx.load("model.onnx")
        >>> max(c.error for c in check_gradients(model, {"input": image}))
        3.2e-09
    """
    rng = np.random.default_rng(seed)
    double = as_double(load(model).to_proto())
    feeds = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in inputs.items()}
    wrt = [k for k, v in feeds.items() if v.dtype == np.float64] if wrt is None else list(wrt)
    output = output or str(double.graph.output[0].name)
    forward = evaluator(double)
    (y,) = evaluate(forward, feeds, [output])
    v = rng.standard_normal(y.shape)
    backward_model = gradient_model(double, wrt, output).to_proto()
    names = {i.name for i in backward_model.graph.input}
    needed = {k: a for k, a in {**feeds, "cotangent": v}.items() if k in names}
    gradients = evaluate(evaluator(backward_model), needed)
    checks = []
    for name, gradient in zip(wrt, gradients, strict=True):
        x = feeds[name]
        u = rng.standard_normal(x.shape)

        def value(offset: float, moved: str = name, x: Array = x, u: Array = u) -> Array:
            return evaluate(forward, {**feeds, moved: x + offset * u}, [output])[0]

        difference = (value(step) - value(-step)) / (2 * step)
        if gradient.shape != x.shape:
            raise AssertionError(f"{name}: the gradient has shape {gradient.shape}, the tensor {x.shape}")
        checks.append(GradientCheck(name, float(np.vdot(gradient, u)), float(np.vdot(v, difference)), gradient))
    return checks
