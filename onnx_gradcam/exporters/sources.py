"""An ONNX file of any origin as a product: its own layer table, class names and preprocessing are kept.

A model file of any kind as ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from onnx_gradcam.errors import ModelError, TargetError
from onnx_gradcam.graph.load import load
from onnx_gradcam.metadata import Carried, Metadata

from .writer import Product

__all__ = ["as_onnx", "read_onnx"]


def read_onnx(path: str | Path) -> Product:
    """Read an ONNX model, raised to opset 18 where it is lower.

    Raises:
        ModelError: the file is missing, damaged or unsafe.
        TargetError: the model holds an explanation already.
    """
    model = load(Path(path))
    said = Metadata.from_props(model.metadata)
    if said is not None:
        raise TargetError(
            f"{path}: the model is explained already (layer {said.target_tensor!r}); export the original model instead"
        )
    carried = Carried.from_props(model.metadata)
    core = model.core
    producer = " ".join(filter(None, (core.producer_name, core.producer_version)))
    return Product(
        model=model,
        framework=carried.framework or "onnx",
        version=carried.framework_version or producer,
        layers=carried.layers,
        labels=carried.labels,
        preprocessing=carried.preprocessing,
        parity=carried.parity,
    )


_SYMBOL = "-symbol.json"


def as_onnx(path: str | Path, layer: str | None = None) -> Path | onnx.ModelProto:
    """What ONNX code can read of a model file, by the end of its name.

    `.keras`, `.h5` and `.hdf5` are Keras models, `NAME-symbol.json` is an MXNet model with its `NAME-*.params` beside
    it, `.pt2` an exported PyTorch program, `.tflite` a TFLite model. Everything else is left as it is: it is ONNX, or
    who loads it says that it is not.

    Args:
        path: of the file.
        layer: the layer to explain, by the framework's name.

    Raises:
        ExplainError: the file cannot be exported.
    """
    path = Path(path)
    read = next((reader for ending, reader in _READERS.items() if path.name.lower().endswith(ending)), None)
    if read is None:
        return path
    from .finishing import finish_export  # noqa: PLC0415 - not needed for ONNX files

    return finish_export(read(path, layer), layer).to_proto()


def _keras(path: Path, _: str | None) -> Product:
    from .keras import read_keras  # noqa: PLC0415 - one reader is needed at most

    return read_keras(path)


def _mxnet(path: Path, _: str | None) -> Product:
    from .mxnet import read_mxnet  # noqa: PLC0415 - as above

    name = path.name[: -len(_SYMBOL)]
    beside = sorted(p.name for p in path.parent.glob("*.params") if p.name.startswith(f"{name}-"))
    if len(beside) != 1:
        found = f"there are {len(beside)} ({', '.join(beside[:5])})" if beside else "there is none"
        raise ModelError(f"{path.name} needs its weights in one file {name}-0000.params beside it, but {found}")
    return read_mxnet(path, path.parent / beside[0])


def _pytorch(path: Path, layer: str | None) -> Product:
    from .pytorch import export_pytorch  # noqa: PLC0415 - as above

    return export_pytorch(path, layer=layer)


def _tflite(path: Path, _: str | None) -> Product:
    from .elsewhere import read_tflite  # noqa: PLC0415 - as above

    return read_tflite(path)


_READERS: dict[str, Callable[[Path, str | None], Product]] = {
    ".keras": _keras,
    ".h5": _keras,
    ".hdf5": _keras,
    _SYMBOL: _mxnet,
    ".pt2": _pytorch,
    ".tflite": _tflite,
}
