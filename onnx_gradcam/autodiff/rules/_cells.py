"""One step of each recurrent layer, written with plain operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["GRU", "GRU_LINEAR", "LSTM", "RNN", "Activations", "Kind", "activation", "split"]

Weights = Mapping[str, Sequence[Value]]
"""R, B (its recurrent half) and P, each in the pieces that the step uses; an omitted input has none."""

Activations = Sequence[Callable[[Builder, Value], Value]]
Step = Callable[[Builder, Value, Sequence[Value], Weights, Activations], "list[Value]"]
"""(builder, X W^T + B of the step, states, weights, activations) -> next states, the hidden one first."""


@dataclass(frozen=True)
class Kind:
    """What distinguishes the three layers.

    Attributes:
        pieces: the gates that each piece of R and B covers.
        activations: the default ones.
        step: one step.
    """

    pieces: tuple[int, ...]
    activations: tuple[str, ...]
    step: Step


# ----- the steps -----------------------------------------------------------------


def _recur(t: Builder, h: Value, w: Weights, piece: int = 0) -> Value:
    """`h R^T + B` for one piece of R and B."""
    return t.op("Gemm", h, w["R"][piece], w["B"][piece] if w["B"] else None, transB=1)


def split(t: Builder, x: Value, parts: int, axis: int) -> tuple[Value, ...]:
    """`x` in equal parts."""
    return t.ops("Split", x, outputs=parts, axis=axis, num_outputs=parts)


def _rnn_step(t: Builder, z: Value, states: Sequence[Value], w: Weights, act: Activations) -> list[Value]:
    return [act[0](t, z + _recur(t, states[0], w))]


def _gru_step(t: Builder, z: Value, states: Sequence[Value], w: Weights, act: Activations) -> list[Value]:
    """`linear_before_reset=0`: the candidate sees the state after the reset."""
    h = states[0]
    update, reset, candidate = _gru_gates(t, z, h, w, act)
    return [_mixed(update, act[1](t, candidate + _recur(t, reset * h, w, 1)), h)]


def _gru_step_linear(t: Builder, z: Value, states: Sequence[Value], w: Weights, act: Activations) -> list[Value]:
    """`linear_before_reset=1`: the reset applies to the state's linear map, as in cuDNN, PyTorch and Keras."""
    h = states[0]
    update, reset, candidate = _gru_gates(t, z, h, w, act)
    return [_mixed(update, act[1](t, candidate + reset * _recur(t, h, w, 1)), h)]


def _gru_gates(t: Builder, z: Value, h: Value, w: Weights, act: Activations) -> tuple[Value, Value, Value]:
    zu, zr, candidate = split(t, z, 3, -1)
    hu, hr = split(t, _recur(t, h, w), 2, -1)
    return act[0](t, zu + hu), act[0](t, zr + hr), candidate


def _mixed(update: Value, candidate: Value, h: Value) -> Value:
    return (1.0 - update) * candidate + update * h


def _lstm_step(t: Builder, z: Value, states: Sequence[Value], w: Weights, act: Activations) -> list[Value]:
    h, c = states
    i, o, f, candidate = split(t, z + _recur(t, h, w), 4, -1)
    peep = w["P"]
    if peep:
        i, f = i + peep[0] * c, f + peep[2] * c
    after = act[0](t, f) * c + act[0](t, i) * act[1](t, candidate)
    if peep:
        o = o + peep[1] * after
    return [act[0](t, o) * act[2](t, after), after]


RNN = Kind((1,), ("Tanh",), _rnn_step)
GRU = Kind((2, 1), ("Sigmoid", "Tanh"), _gru_step)
GRU_LINEAR = Kind((2, 1), ("Sigmoid", "Tanh"), _gru_step_linear)
LSTM = Kind((4,), ("Sigmoid", "Tanh", "Tanh"), _lstm_step)

# Attributes that each activation takes, with their defaults; none where ONNX gives no default.
_ACTIVATIONS: dict[str, dict[str, float | None]] = {
    "Affine": {"alpha": None, "beta": None},
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Relu": {},
    "ScaledTanh": {"alpha": None, "beta": None},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 1.0},
}


def activation(name: str, given: Mapping[str, list[float]]) -> Callable[[Builder, Value], Value]:
    """An activation; it takes its parameters off the lists of those that remain."""
    found = {n.lower(): n for n in _ACTIVATIONS}.get(name.lower())
    if found is None:
        raise UnsupportedError(f"the recurrent activation {name!r} is not one that ONNX lists; use one of its own")
    values: dict[str, Any] = {}
    for key, default in _ACTIVATIONS[found].items():
        values[key] = given[key].pop(0) if given[key] else default
        if values[key] is None:
            raise UnsupportedError(
                f"the recurrent activation {found} has no activation_{key}; export the model with it"
            )
    if found in {"Affine", "ScaledTanh"}:
        alpha, beta = values["alpha"], values["beta"]
        return lambda t, x: x * alpha + beta if found == "Affine" else t.op("Tanh", x * beta) * alpha
    return lambda t, x: t.op(found, x, **values)
