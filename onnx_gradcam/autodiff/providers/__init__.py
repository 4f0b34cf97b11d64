"""Equivalent lowerings for one execution provider each.

A profile is a rule table that is passed to `backward` and, for a provider whose documents list what it runs, that list:
`conform` brings what the rules and everything else appended within it. `portable` are the registered rules; a test
holds the operators that they need for convolutional classifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy.typing as npt

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.registry import Table, rules
from onnx_gradcam.graph.builder import Builder, Value

from .conform import Provider, conform
from .cpu import blocked_rules
from .listed import COREML, CUDA, TENSORRT, WEBGPU
from .maxpool import pools_by_convolution

__all__ = ["PROFILES", "PROVIDERS", "Provider", "conform", "differentiate"]

PROFILES: dict[str, Callable[[], Table]] = {
    "portable": rules,
    "cpu": blocked_rules,
    "cuda": rules,
    "tensorrt": rules,
    "coreml": lambda: pools_by_convolution(rules()),
    "webgpu": lambda: pools_by_convolution(rules()),
}
"""Rule tables by name."""

PROVIDERS: dict[str, Provider] = {p.name: p for p in (CUDA, TENSORRT, COREML, WEBGPU)}
"""The documented providers by the name of their profile; `portable` and `cpu` run on ONNX Runtime's CPU provider."""


def differentiate(
    t: Builder,
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    profile: str = "portable",
    modify: Callable[[Table], Table] | None = None,
    dtype: npt.DTypeLike | None = None,
) -> list[Value]:
    """`backward` by the rules of a profile, and within what its provider documents.

    Args:
        t: the builder.
        seeds: score -> its cotangent.
        wrt: the tensors whose cotangents are wanted.
        profile: the name of the profile.
        modify: a modifier of the rules, such as guided backpropagation.
        dtype: the type to compute in, whatever the model's is.

    Raises:
        UnsupportedError: a node on the path has no rule, or its gradient has no lowering for the provider.
    """
    table, since = PROFILES[profile](), len(t.appended)
    found = backward(t, seeds, wrt, table if modify is None else modify(table), dtype)
    return conform(t, PROVIDERS[profile], found, since)[0] if profile in PROVIDERS else found
