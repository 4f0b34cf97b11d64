"""A normalised model: what is known of its tensors, how it is checked and saved."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ModelError

from .read import skeleton
from .shapes import Shape, infer_shapes

__all__ = ["Model"]

_SMALL_BYTES = 1000
_LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that the file itself may hold: protobuf encodes no two gigabytes."""


@dataclass(eq=False)
class Model:
    """A normalised model, and what is known of its tensors.

    Attributes:
        core: the model itself: opset 18 or above, no functions, no initializer among the inputs.
        folder: the folder that external weights are relative to.
        types: ONNX element type of every tensor, by name.
        shapes: shape of every tensor whose rank is known, by name.
        example: shapes for one choice of the free input dimensions, by name.
        name: what to call the model in messages.
    """

    core: ir.Model
    folder: Path | None
    types: dict[str, int]
    shapes: dict[str, Shape]
    example: dict[str, tuple[int, ...]]
    name: str
    _external: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._external = any(isinstance(v.const_value, ir.ExternalTensor) for v in self._initializers())

    def _initializers(self) -> Iterator[ir.Value]:
        yield from self.core.graph.initializers.values()

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
        return ir.to_proto(self.core)

    def _skeleton(self) -> onnx.ModelProto:
        """The model without its larger weights, none of which is read or copied on the way."""
        weights = {v: w for v in self._initializers() if (w := v.const_value) is not None and w.nbytes > _SMALL_BYTES}
        for value, weight in weights.items():
            value.const_value = ir.ExternalTensor(
                "unread", 0, weight.nbytes, weight.dtype, shape=ir.Shape(weight.shape.numpy()), name=str(weight.name)
            )
        try:
            return skeleton(ir.to_proto(self.core))
        finally:
            for value, weight in weights.items():
                value.const_value = weight

    def infer(self) -> None:
        """Infer types and shapes again, after nodes of the graph have been replaced."""
        inferred = infer_shapes(self._skeleton())
        self.types, self.shapes, self.example = inferred.types, inferred.shapes, inferred.example

    def check(self) -> None:
        """Run the ONNX checker with full shape inference over the weightless model.

        Raises:
            ModelError: the graph is not valid; the message is the checker's.
        """
        try:
            onnx.checker.check_model(self._skeleton(), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
            raise ModelError(f"{self.name}: the graph is not valid ONNX: {' '.join(str(exc).split())}") from exc

    def save(self, path: str | Path) -> None:
        """Write the model; the file appears complete or not at all.

        External weights stay where they are when `path` lies in the model's own folder, and are copied to
        `<name>.data` beside `path` otherwise. So are all weights where they are too many for one file.

        Raises:
            ModelError: the folder cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise ModelError(f"{path}: is a folder; give the name of a file in it")
        tensors = [v.const_value for v in self._initializers() if v.const_value is not None]
        inside = sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))
        moved = inside > _LARGEST_FILE or (self._external and path.resolve().parent != self.folder)
        try:
            with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=f".{path.name}.") as scratch:
                draft = Path(scratch) / path.name
                data = f"{path.name}.data" if moved else None
                ir.save(self.core, draft, external_data=data)
                if data is not None and draft.with_name(data).exists():
                    os.replace(draft.with_name(data), path.with_name(data))  # noqa: PTH105 - atomic on both systems
                os.replace(draft, path)  # noqa: PTH105
        except OSError as exc:
            raise ModelError(f"{path}: cannot be written ({exc.strerror or exc})") from exc
