"""Rules of the recurrent layers RNN, GRU and LSTM.

One step of a layer is written in plain operators, whose rules differentiate it. The backward pass over all steps is
that of a Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import index_along
from .control import flipped, scan_vjp

__all__ = ["GRU", "GRU_LINEAR", "LSTM", "RNN", "Activations", "Kind", "activation", "split"]

Weights = Mapping[str, Sequence[Value]]
"""R, B (its recurrent half) and P, each in the pieces that a step uses; none for an omitted input."""

Activations = Sequence[Callable[[Builder, Value], Value]]
Step = Callable[[Builder, Value, Sequence[Value], Weights, Activations], "list[Value]"]
"""(builder, X W^T + B of the step, states, weights, activations) -> next states, the hidden one first."""


@dataclass(frozen=True)
class Kind:
    """The differences between the three layers: the gates that each piece of R and B covers, and one step."""

    pieces: tuple[int, ...]
    activations: tuple[str, ...]
    step: Step


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
    """`linear_before_reset=1`: the reset applies to the linear map of the state, as in cuDNN, PyTorch and Keras."""
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
"""The attributes of each activation with their defaults; `None` where ONNX has no default."""


def activation(name: str, parameters: Mapping[str, list[float]]) -> Callable[[Builder, Value], Value]:
    """The activation of this name; it removes its own parameters from the front of `parameters`."""
    op_type = {n.lower(): n for n in _ACTIVATIONS}.get(name.lower())
    if op_type is None:
        raise UnsupportedError(
            f"ONNX has no recurrent activation {name!r}; export the model with one of {', '.join(_ACTIVATIONS)}"
        )
    values: dict[str, Any] = {}
    for key, default in _ACTIVATIONS[op_type].items():
        values[key] = parameters[key].pop(0) if parameters[key] else default
        if values[key] is None:
            raise UnsupportedError(
                f"the recurrent activation {op_type} has no activation_{key}; export the model with it"
            )
    composed: dict[str, Callable[[Builder, Value], Value]] = {
        "Affine": lambda t, x: x * values["alpha"] + values["beta"],
        "ScaledTanh": lambda t, x: t.op("Tanh", x * values["beta"]) * values["alpha"],
    }
    return composed.get(op_type) or (lambda t, x: t.op(op_type, x, **values))


@dataclass(frozen=True)
class _Options:
    """The attributes that all recurrent operators have, as in ONNX."""

    activation_alpha: Sequence[float] | None
    activation_beta: Sequence[float] | None
    activations: Sequence[str] | None
    direction: str
    hidden_size: int | None
    layout: int


class _Layer:
    """One recurrent node, with time as its first dimension."""

    def __init__(
        self, t: Builder, kind: Kind, gs: Sequence[Value | None], x: Value, w: Value, r: Value, b: Value | None,
        p: Value | None, lengths: Value | None, initial: Sequence[Value | None], options: _Options,
    ) -> None:  # fmt: skip
        self.t, self.kind, self.w, self.r, self.b, self.p, self.initial = t, kind, w, r, b, p, initial
        self.batch_first = bool(options.layout)
        self.x = t.transpose(x, [1, 0, 2]) if self.batch_first else x
        y, *last = (*gs, None, None)[: 1 + len(initial)]
        # [steps, directions, batch, hidden] and [directions, batch, hidden].
        self.gy = t.transpose(y, [1, 2, 0, 3]) if y is not None and self.batch_first else y
        self.last = [self._swapped(g) for g in last]
        self.backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[options.direction]
        self.activations = self._activations(options)
        size = r.shape[-1] if isinstance(r.shape[-1], int) else options.hidden_size
        if not isinstance(size, int):
            raise UnsupportedError(f"the hidden size of {r.name!r} is unknown; export the model with fixed weights")
        self.size = size
        steps = None if lengths is None else lengths.array()
        full = steps is not None and all(n == self.x.shape[0] for n in steps.tolist())
        self.lengths = None if full else lengths
        self._sweeps: dict[tuple[int, str], tuple[list[Value], list[Value], Value]] = {}

    def _activations(self, options: _Options) -> list[Activations]:
        count = len(self.kind.activations)
        names = list(options.activations or self.kind.activations * len(self.backwards))
        parameters = {"alpha": list(options.activation_alpha or ()), "beta": list(options.activation_beta or ())}
        functions = [activation(name, parameters) for name in names[: count * len(self.backwards)]]
        return [functions[i * count : (i + 1) * count] for i in range(len(self.backwards))]

    def _swapped(self, v: Value | None) -> Value | None:
        return v if v is None or not self.batch_first else self.t.transpose(v, [1, 0, 2])

    def _direction(self, v: Value, d: int, axis: int = 0) -> Value:
        return self.t.op("Gather", v, self.t.const(np.int64(d)), axis=axis)

    def _steps(self, d: int) -> Value:
        """The inputs of a direction, in reading order."""
        return flipped(self.t, self.x) if self.backwards[d] else self.x

    def _weights(self, d: int) -> dict[str, list[Value]]:
        t, n = self.t, self.size

        def pieces(v: Value, counts: Sequence[int]) -> list[Value]:
            if len(counts) == 1:
                return [v]
            sizes = t.ints(*(c * n for c in counts))
            return list(t.ops("Split", v, sizes, outputs=len(counts), axis=0))

        r, b, p = (None if v is None else self._direction(v, d) for v in (self.r, self.b, self.p))
        return {
            "R": pieces(r, self.kind.pieces) if r is not None else [],
            "B": pieces(split(t, b, 2, 0)[1], self.kind.pieces) if b is not None else [],
            "P": pieces(p, (1, 1, 1)) if p is not None else [],
        }

    def _first_states(self, d: int) -> list[Value]:
        t, batch = self.t, self.x.shape[1]
        size = t.ints(batch) if isinstance(batch, int) else t.op("Shape", self.x, start=1, end=2)
        shape = t.op("Concat", size, t.ints(self.size), axis=0)
        states = []
        for initial in self.initial:
            whole = self._swapped(initial)
            start = t.op("Expand", t.const(0.0, self.x.dtype), shape) if whole is None else self._direction(whole, d)
            states.append(t.refine(start, (batch, self.size)))
        return states

    def _mask(self, d: int) -> list[Value]:
        """The samples that a step belongs to; empty where all sequences are of full length."""
        if self.lengths is None:
            return []
        t = self.t
        ends = t.op("Reshape", t.cast(self.lengths, np.int64), t.ints(1, -1, 1))
        mask = t.op("Less", index_along(t, self.x, 0), ends)
        return [flipped(t, mask) if self.backwards[d] else mask]

    def sweep(self, d: int, weights: str = "") -> tuple[list[Value], list[Value], Value]:
        """Run one direction backwards through time, differentiating by the weights "R", "B" or "P" as well.

        Returns the cotangents of the first states, of the pieces of the weights, and of `X W^T + B` in reading order.
        """
        if (d, weights) not in self._sweeps:
            self._sweeps[d, weights] = self._sweep(d, weights)
        return self._sweeps[d, weights]

    def _sweep(self, d: int, name: str) -> tuple[list[Value], list[Value], Value]:
        t = self.t
        weights = self._weights(d)
        z = t.op("MatMul", self._steps(d), t.transpose(self._direction(self.w, d), [1, 0]))
        if self.b is not None:
            z = z + split(t, self._direction(self.b, d), 2, 0)[0]

        def body(inner: Builder, states: list[Value], slices: list[Value]) -> tuple[list[Value], list[Value]]:
            own = {key: [inner.wrap(v.core) for v in pieces] for key, pieces in weights.items()}
            after = self.kind.step(inner, slices[0], states, own, self.activations[d])
            if len(slices) == 1:
                return after, [after[0]]
            # After its end a sequence keeps its states, and its output is zero.
            kept = [inner.op("Where", slices[1], a, b) for a, b in zip(after, states, strict=True)]
            return kept, [inner.op("Where", slices[1], after[0], 0.0)]

        gy = None if self.gy is None else self._direction(self.gy, d, axis=1)
        if gy is not None and self.backwards[d]:
            gy = flipped(t, gy)
        last = [None if g is None else self._direction(g, d) for g in self.last]
        params = weights[name] if name else []
        states, (gz,), totals = scan_vjp(t, body, self._first_states(d), [z, *self._mask(d)], last, [gy], params)
        return states, totals, gz

    def cotangents(self) -> list[Cotangent]:
        """The cotangents of the inputs that every recurrent operator has, in ONNX order; lengths have none."""
        return [
            self.data,
            self.input_weights,
            lambda: self.weights("R"),
            self.bias,
            None,
            lambda: self.initial_state(0),
        ]

    def data(self) -> Value:
        """The cotangent of X."""
        parts = []
        for d, backwards in enumerate(self.backwards):
            dx = self.t.op("MatMul", self.sweep(d)[2], self._direction(self.w, d))
            parts.append(flipped(self.t, dx) if backwards else dx)
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return self.t.transpose(total, [1, 0, 2]) if self.batch_first else total

    def _stacked(self, make: Callable[[int], Value]) -> Value:
        t = self.t
        parts = [t.op("Unsqueeze", make(d), t.ints(0)) for d in range(len(self.backwards))]
        return parts[0] if len(parts) == 1 else t.op("Concat", *parts, axis=0)

    def _joined(self, parts: Sequence[Value]) -> Value:
        return parts[0] if len(parts) == 1 else self.t.op("Concat", *parts, axis=0)

    def input_weights(self) -> Value:
        """The cotangent of W."""
        t = self.t

        def one(d: int) -> Value:
            gz, x = (t.op("Flatten", v, axis=2) for v in (self.sweep(d)[2], self._steps(d)))
            return t.op("Gemm", gz, x, transA=1)

        return self._stacked(one)

    def weights(self, name: str) -> Value:
        """The cotangent of R or P."""
        return self._stacked(lambda d: self._joined(self.sweep(d, name)[1]))

    def bias(self) -> Value:
        """The cotangent of B: the half that is added to the inputs, then the recurrent half."""

        def one(d: int) -> Value:
            _, recurrent, gz = self.sweep(d, "B")
            return self._joined([self.t.sum(gz, [0, 1], keepdims=False), *recurrent])

        return self._stacked(one)

    def initial_state(self, i: int) -> Value:
        """The cotangent of initial_h or initial_c."""
        state = self._stacked(lambda d: self.sweep(d)[0][i])
        return self.t.transpose(state, [1, 0, 2]) if self.batch_first else state


def _check(kind: str, **unserved: float | None) -> None:
    """Refuse attributes that no step serves."""
    for name, value in unserved.items():
        if value:
            raise UnsupportedError(f"no VJP rule for {kind} with {name}; export the model without it")


@vjp("RNN", all_outputs=True)
def rnn(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value, w: Value, r: Value, b: Value | None = None,
    sequence_lens: Value | None = None, initial_h: Value | None = None,
    *, activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] = ("Tanh", "Tanh"), clip: float | None = None, direction: str = "forward",
    hidden_size: int | None = None, layout: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """The simple recurrent layer."""
    _check("RNN", clip=clip)
    options = _Options(activation_alpha, activation_beta, activations, direction, hidden_size, layout)
    return _Layer(t, RNN, gs, x, w, r, b, None, sequence_lens, [initial_h], options).cotangents()


@vjp("GRU", all_outputs=True)
def gru(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value, w: Value, r: Value, b: Value | None = None,
    sequence_lens: Value | None = None, initial_h: Value | None = None,
    *, activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None, clip: float | None = None, direction: str = "forward",
    hidden_size: int | None = None, layout: int = 0, linear_before_reset: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """Gated recurrent units, in both variants."""
    _check("GRU", clip=clip)
    options = _Options(activation_alpha, activation_beta, activations, direction, hidden_size, layout)
    kind = GRU_LINEAR if linear_before_reset else GRU
    return _Layer(t, kind, gs, x, w, r, b, None, sequence_lens, [initial_h], options).cotangents()


@vjp("LSTM", all_outputs=True)
def lstm(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value, w: Value, r: Value, b: Value | None = None,
    sequence_lens: Value | None = None, initial_h: Value | None = None, initial_c: Value | None = None,
    p: Value | None = None,
    *, activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None, clip: float | None = None, direction: str = "forward",
    hidden_size: int | None = None, input_forget: int = 0, layout: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """Long short-term memory, with or without peepholes."""
    _check("LSTM", clip=clip, input_forget=input_forget)
    options = _Options(activation_alpha, activation_beta, activations, direction, hidden_size, layout)
    layer = _Layer(t, LSTM, gs, x, w, r, b, p, sequence_lens, [initial_h, initial_c], options)
    return [*layer.cotangents(), lambda: layer.initial_state(1), lambda: layer.weights("P")]
