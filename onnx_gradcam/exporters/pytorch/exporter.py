"""From a PyTorch network to ONNX, verified against PyTorch before anything is handed on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.exporters.writer import Product

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
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto",
    progress: Progress | None = None,
) -> Product:
    """Export a PyTorch classifier.

    ==========================  ====================================================================================
    source                      what it is
    ==========================  ====================================================================================
    `model.pt2`                 a program of `torch.export.save`: no code of the user's is needed
    `torchvision.models:NAME`   torchvision's network, with `weights` from a file or by torchvision's name
    `timm:NAME`                 timm's network, with `weights` from a file or timm's own
    a folder                    of Hugging Face's: `config.json` and weights
    `module:factory`            a function of the user's that makes the network (`trust`)
    `model.pt`                  a TorchScript (`trust`): its modules take no hooks
    a `torch.nn.Module`         a network of the calling program
    ==========================  ====================================================================================

    Pickled networks are refused: reading one runs whatever code it names.

    Args:
        source: the network.
        weights: a state dictionary: `.safetensors`, or `.pth`, `.pt`, `.th`, `.bin` read as plain tensors.
        layer: path of the module whose output is to be exact; by default the layers that survive are found by value.
        call: which of the calls of `layer`, as a list index.
        size: height and width to fix the images at; by default the network's own, or any where it allows that.
        trust: run code that the source names.
        exporter: which of PyTorch's exporters; `auto` takes `torchscript` where `dynamo` fails, and says so.
        progress: is told what is being done.

    Returns:
        The graph, `[batch, channels, height, width]` in; its outputs and the tensor of `layer` were compared with
        PyTorch's, at batch 1 and 3 where the batch is free.

    Raises:
        ModelError: a file is damaged or would run code.
        TargetError: there is no such layer or call.
        UnsupportedError: PyTorch is not installed, the weights do not fit, no exporter can do it, or the graph's
            values are not the network's.
    """
    lacking = [package for package in ("torch", "onnxscript") if importlib.util.find_spec(package) is None]
    if lacking:
        raise UnsupportedError(
            f"{' and '.join(lacking)} must be installed to export from PyTorch; run pip install torch onnxscript"
        )
    from .programs import open_source  # noqa: PLC0415 - needs PyTorch
    from .verified import Verified  # noqa: PLC0415

    report = progress or (lambda _step: None)
    report("reading the network")
    opened = open_source(source, weights, trust=trust)
    ways: Sequence[Any] = ("dynamo", "torchscript") if exporter == "auto" else (exporter,)
    sides = (size, size) if isinstance(size, int) else size
    return Verified(opened, layer, call, sides, report).exported(ways)
