"""Convert Keras models to ONNX with Keras on PyTorch and PyTorch's exporter; run by `exporters.elsewhere`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .conversation import RefusedError, checked_tensor, record
from .keras_files import Caught, image_shape, keras_version, load_model, output_names

__all__ = ["work"]

_EXAMPLE_BATCH = 2
"""PyTorch's exporter treats a size of one as a constant."""


def work(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Convert `request["path"]`."""
    import keras  # noqa: PLC0415 - its absence is an answer
    import onnxscript  # noqa: F401, PLC0415 - the exporter needs it
    import torch  # noqa: PLC0415

    model = load_model(request, keras)
    shape = image_shape(model)
    if not all(shape[1:]):
        raise RefusedError("leaves the image size open, which --via torch does not support; use --via tf")
    caught = Caught(model)

    class Network(torch.nn.Module):  # type: ignore[misc]
        """The model with its layers' outputs after its own."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> list[Any]:
            caught.outputs.clear()
            result = self.model(image, training=False)
            # A copy: later in-place operations would change the captured tensor.
            return [*_flat(result), *(value.clone() for value in caught.maps().values())]

    network = Network().eval()
    example = torch.zeros(_EXAMPLE_BATCH, *shape[1:])
    with torch.no_grad():
        count = len(network(example)) - len(caught.maps())
    names = output_names(model, count)
    maps = list(caught.maps())
    layers = [[name, caught.kinds[name], f"layer_{i}"] for i, name in enumerate(maps)]
    tensors = [*names, *(tensor for _, _, tensor in layers)]
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["input"], output_names=tensors, opset_version=18, verbose=False,
    )  # fmt: skip
    program.save(str(folder / "model.onnx"))

    def run(image: Any) -> dict[str, Any]:
        with torch.no_grad():
            values = network(torch.from_numpy(image))
        return {tensor: value.numpy() for tensor, value in zip(tensors, values, strict=True)}

    record(folder, shape, run, {*names, checked_tensor(layers, request["layer"])})
    return {"version": keras_version(request["path"]), "outputs": names, "layers": layers}


def _flat(result: Any) -> list[Any]:
    if isinstance(result, dict):
        return list(result.values())
    return list(result) if isinstance(result, (list, tuple)) else [result]
