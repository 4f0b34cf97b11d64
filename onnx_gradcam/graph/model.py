"""A loaded model: its tensors, its validity, its file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ExplainError, InputError, ModelError
from onnx_gradcam.files import Drafts, check_replaceable

from .read import skeleton
from .shapes import Shape, TensorInfo, infer_shapes, ranked_shape

__all__ = ["Model", "own_errors"]

_SMALL_BYTES = 1000
_ENDINGS = {"", ".onnx", ".pb"}
"""Endings of files that a model may replace."""

_LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that one file can hold: protobuf encodes less than two gigabytes."""


@dataclass(eq=False)
class Model:
    """A normalised model: opset 18 or above, no functions, no initializer among the inputs.

    Types and shapes are kept on the tensors themselves: `TensorInfo.of(value)`, or `info` by name.

    Attributes:
        core: the model itself.
        folder: the folder that external weights are relative to.
        name: what to call the model in messages.
        raised_from: the version of the default operator set that the model had, if it was an older one.
    """

    core: ir.Model
    folder: Path | None
    name: str
    raised_from: int | None = None
    _external: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._external = any(isinstance(v.const_value, ir.ExternalTensor) for v in self._initializers())

    def _initializers(self) -> Iterator[ir.Value]:
        yield from self.core.graph.initializers.values()

    def tensors(self) -> Iterator[ir.Value]:
        """The tensors of the main graph: inputs, initializers, then outputs of nodes."""
        yield from self.core.graph.inputs
        yield from self._initializers()
        for node in self.core.graph:
            yield from node.outputs

    def find(self, name: str) -> ir.Value | None:
        """The tensor of the main graph called `name`, or `None`."""
        return next((value for value in self.tensors() if value.name == name), None)

    def info(self, name: str) -> TensorInfo:
        """The type and shape of the tensor called `name`; a `ModelError` if there is none."""
        return TensorInfo.of(self._named(name))

    def shape(self, name: str) -> Shape:
        """The shape of the tensor called `name`; a `ModelError` if there is none, or its rank is unknown."""
        return ranked_shape(self._named(name))

    def _named(self, name: str) -> ir.Value:
        value = self.find(name)
        if value is None:
            raise ModelError(f"{self.name} has no tensor {name!r}; was it edited after it was written?")
        return value

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.core.opset_imports[""])

    @property
    def metadata(self) -> dict[str, str]:
        """The model's `metadata_props`, live."""
        return self.core.metadata_props

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto; external weights stay references."""
        with own_errors():
            return ir.to_proto(self.core)

    def _skeleton(self) -> onnx.ModelProto:
        """A copy without the larger weights, made without reading them."""
        weights = {v: w for v in self._initializers() if (w := v.const_value) is not None and w.nbytes > _SMALL_BYTES}
        for value, weight in weights.items():
            value.const_value = ir.ExternalTensor(
                "unread", 0, weight.nbytes, weight.dtype, shape=ir.Shape(weight.shape.numpy()), name=str(weight.name)
            )
        try:
            return skeleton(self.to_proto())
        finally:
            for value, weight in weights.items():
                value.const_value = weight

    def infer(self) -> bool:
        """Infer types and shapes again, in place, after nodes have been replaced; whether any of them changed."""
        inferred = infer_shapes(self._skeleton())
        changed = False
        for value in self.tensors():
            changed |= inferred.get(str(value.name), TensorInfo()).keep_on(value)
        return changed

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, those in other files included."""
        values = self.core.graph.initializers.values()
        return sum(value.const_value.nbytes for value in values if value.const_value is not None)

    @property
    def fits_one_file(self) -> bool:
        """Whether one file can hold the model with those of its weights that are not in another file already."""
        tensors = [v.const_value for v in self._initializers() if v.const_value is not None]
        return sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor)) <= _LARGEST_FILE

    def remove_unread(self, nodes: Sequence[ir.Node], initializers: Sequence[ir.Value]) -> bool:
        """Remove, in place, those of the nodes and initializers that no output needs; whether there were any.

        Each node comes after those that it reads.
        """
        graph, removed = self.core.graph, False
        for node in reversed(nodes):
            if not any(o.uses() or o.is_graph_output() for o in node.outputs):
                graph.remove(node, safe=True)
                removed = True
        for value in initializers:
            if not value.uses() and not value.is_graph_output():
                graph.initializers.pop(str(value.name))
                removed = True
        return removed

    def check(self) -> None:
        """Check the model without its weights by the ONNX checker and full inference; a `ModelError` if invalid."""
        try:
            onnx.checker.check_model(self._skeleton(), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
            raise ModelError(f"{self.name}: the graph is not valid ONNX: {' '.join(str(exc).split())}") from exc

    def save(self, path: str | Path) -> None:
        """Write the model atomically; `InputError` if the file cannot be written.

        External weights stay where they are if `path` is in the model's own folder; otherwise they are copied to
        `<name>.data` beside `path`. Weights that are too large for one file are written there too.
        """
        path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
        if path.is_file() and path.suffix.lower() not in _ENDINGS:
            raise InputError(
                f"{str(path)!r} exists and is not a model by its ending; remove it, or choose a name that ends in .onnx"
            )
        check_replaceable(path, "a model")
        moved = not self.fits_one_file or (self._external and path.resolve().parent != self.folder)
        if moved and path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{str(path)!r} is not a regular file, but the weights need a second one beside it")
        with own_errors(), Drafts() as drafts:
            # Renamed before the model, so that no model is ever without its weights.
            data = self._weights_draft(drafts, path) if moved else None
            ir.save(self.core, drafts.file(path), external_data=data)

    @staticmethod
    def _weights_draft(drafts: Drafts, path: Path) -> str:
        file = path.with_name(f"{path.name}.data")
        check_replaceable(file, "a model")
        return drafts.file(file).name


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raise the error of a weight that cannot be read, which `onnx_ir` wraps in its own."""
    try:
        yield
    except ir.serde.SerdeError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, ExplainError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
