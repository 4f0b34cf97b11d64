"""Profiles: one gradient, written for different runtimes.

Every profile computes the same numbers. A profile names a table of VJP rules and, for a runtime whose documents list
its operators, these operators: `conform` keeps what is appended within the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy.typing as npt

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.registry import Table
from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value

from .aliasing import separate_weights
from .conform import Profile, conform
from .profiles import PROFILES

__all__ = ["PROFILES", "Profile", "conform", "differentiate", "find_profile", "separate_weights"]


def find_profile(name: str) -> Profile:
    """The profile of this name; a `TargetError` if there is none."""
    if name not in PROFILES:
        raise TargetError(
            f"there is no profile {name!r}{near_matches(name, PROFILES)}; there are {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def differentiate(
    t: Builder,
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    profile: str = "portable",
    modify: Callable[[Table], Table] | None = None,
    dtype: npt.DTypeLike | None = None,
) -> list[Value]:
    """Append the cotangents of `wrt`, as `backward` does, in the rules and operators of a profile.

    `modify` changes the rules, as guided backpropagation does.

    Raises:
        TargetError: there is no such profile.
        UnsupportedError: a node on the path has no rule, or the profile's runtime has no operators for its gradient.
    """
    chosen, since = find_profile(profile), len(t.appended)
    table = chosen.rules() if modify is None else modify(chosen.rules())
    return conform(t, chosen, backward(t, seeds, wrt, table, dtype), since)[0]
