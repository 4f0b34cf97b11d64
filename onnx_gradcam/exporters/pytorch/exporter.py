"""Export a PyTorch network to ONNX and check the graph against PyTorch; loads PyTorch only when it runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Product
from onnx_gradcam.options import TorchExporter

if TYPE_CHECKING:
    import torch

__all__ = ["export_pytorch"]

Progress = Callable[[str], None]


def export_pytorch(
    source: str | Path | torch.nn.Module,
    *,
    weights: str | Path | None = None,
    layer: str | None = None,
    call: int = -1,
    size: int | tuple[int, int] | None = None,
    trust: bool = False,
    exporter: TorchExporter = "auto",
    keep_normalization: bool = False,
    progress: Progress | None = None,
) -> Product:
    """Export a PyTorch classifier.

    ::

        export_pytorch("torchvision.models:resnet18", weights="resnet18.pth", layer="layer4")

    ==========================  ====================================================================================
    source                      what it is
    ==========================  ====================================================================================
    `model.pt2`                 a program of `torch.export.save`; needs no code of yours
    `torchvision.models:NAME`   torchvision's network, with `weights` from a file or by torchvision's name
    `timm:NAME`                 timm's network, with `weights` from a file or timm's own
    a folder                    a Hugging Face model: `config.json` and weights
    `module:factory`            your function that returns the network (`trust`)
    `model.pt`                  a TorchScript (`trust`)
    a `torch.nn.Module`         a network of the calling program
    ==========================  ====================================================================================

    Pickled networks are refused: reading one runs whatever code it names.

    Args:
        source: the network.
        weights: a state dictionary: `.safetensors`, or `.pth`, `.pt`, `.th`, `.bin`, read as plain tensors.
        layer: path of the module whose output must be exact; other layers are matched by their values.
        call: which of the calls of `layer`, as a list index.
        size: fix height and width of the images; by default the network's own, or free where possible.
        trust: run code that the source names.
        exporter: which of PyTorch's exporters; `auto` takes `torchscript` if `dynamo` fails, and warns.
        keep_normalization: leave batch normalizations out of the convolutions in front of them, as FullGrad needs it.
        progress: called with each step, in words.

    Returns:
        The graph, `[batch, channels, height, width]` in; its outputs and the tensor of `layer` were compared with
        PyTorch's, at batch 1 and 3 where the batch is free.

    Raises:
        InputError: a file cannot be opened, or arguments that exclude each other.
        TargetError: there is no such layer or call.
        ExportError: a package is missing, a file is damaged or would run code, the weights do not fit, no exporter
            succeeds, or the graph's values are not the network's.
    """
    missing = [package for package in ("torch", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f"exporting from PyTorch needs {' and '.join(missing)}; run pip install torch onnxscript")
    from .programs import open_source  # noqa: PLC0415 - needs PyTorch
    from .verified import Verified  # noqa: PLC0415

    report = progress or (lambda _step: None)
    report("reading the network")
    opened = open_source(source, weights, trust=trust)
    ways: Sequence[Any] = ("dynamo", "torchscript") if exporter == "auto" else (exporter,)
    sides = (size, size) if isinstance(size, int) else size
    verified = Verified(opened, layer, call, sides, report, keep_normalization=keep_normalization)
    return verified.exported(ways)
