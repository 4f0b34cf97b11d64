"""How much of the score the image times its gradient and the biases leave out, as it is and with `--modifier libra`.

Run by hand, with torch, timm and transformers for the exports::

    python benchmarks/completeness.py                     # small exports, a few minutes
    python benchmarks/completeness.py --only vit convnext
    python benchmarks/completeness.py --models a.onnx b.onnx
    python benchmarks/completeness.py --quick             # one export, to check that it runs

Small variants of networks with random weights are exported by both exporters of PyTorch, at the opsets that change how
attention and activations are written. The input is random numbers, the score that of the predicted class. Of the
gradient as it is, only constants of affine operators count as biases. Prints markdown.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import line, table

from onnx_gradcam.errors import ExplainError
from onnx_gradcam.evaluation.verification import check_completeness
from onnx_gradcam.options import Options

HEADER = ("model", "score", "missing, as it is", "missing, with libra", "of max(score, 1)")
OPSETS = {"TorchScript": (17,), "dynamo": (18, 20, 23)}
"""The exporters of PyTorch and the opsets to export to: below 20 there is no Gelu, from 23 on attention is a node."""

TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 64, {"depth": 2}),
    "vit, mean": ("vit_tiny_patch16_224", 64, {"depth": 2, "global_pool": "avg", "class_token": False}),
    "vit, attention pool": ("vit_base_patch16_siglip_224", 64, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "eva-02": ("eva02_tiny_patch14_224", 56, {"depth": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        56,
        {"depths": (2, 2), "num_heads": (3, 6), "embed_dim": 24, "window_size": 7},
    ),
    "convnext": ("convnext_atto", 64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "maxvit": ("maxvit_nano_rw_256", 64, {}),
}
"""Networks of timm by the name in the table: its own name, the side of the image, other arguments."""

_VISION = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
_TEXT = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99, "max_position_embeddings": 16}
TRANSFORMERS = {
    f"{kind}, {attention}": (kind, attention)
    for kind in ("clip", "siglip", "dinov2")
    for attention in ("sdpa", "eager")
}
"""Networks of transformers by the name in the table: what they are, and how their attention is written."""

Built = tuple[Any, tuple[Any, ...], list[str]]
"""A network, what it is called with, and the names of its inputs."""


def of_timm(name: str) -> Built:
    """A small network of timm."""
    import timm  # noqa: PLC0415 - models of other files do not need it
    import torch  # noqa: PLC0415

    kind, side, arguments = TIMM[name]
    if "img_size" not in arguments and "convnext" not in kind:
        arguments = {**arguments, "img_size": side}
    network = timm.create_model(kind, pretrained=False, num_classes=7, **arguments)
    return network, (torch.randn(1, 3, side, side),), ["x"]


def of_transformers(name: str) -> Built:
    """A small network of transformers; of a dual encoder, the scores of two texts."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    kind, attention = TRANSFORMERS[name]
    pixels = torch.randn(1, 3, 64, 64)

    def built(config: Any, network: Any, call: Callable[..., Any]) -> Any:
        config._attn_implementation = attention  # noqa: SLF001 - there is no other way before it is built

        class Called(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network(config)

            def forward(self, *values: Any) -> Any:
                return call(self.network, *values)

        return Called()

    if kind == "dinov2":
        config = transformers.Dinov2Config(**_VISION, use_swiglu_ffn=True, num_labels=7)
        network = transformers.Dinov2ForImageClassification
        return built(config, network, lambda m, p: m(pixel_values=p).logits), (pixels,), ["pixel_values"]
    wide = {"intermediate_size": 64}
    if kind == "siglip":
        config = transformers.SiglipConfig(
            text_config={**_TEXT, **wide, "hidden_size": 48, "projection_size": 48}, vision_config={**_VISION, **wide}
        )
        network = transformers.SiglipModel
    else:
        ends = {"eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 1}
        config = transformers.CLIPConfig(
            text_config={**_TEXT, **wide, **ends, "hidden_size": 32},
            vision_config={**_VISION, **wide},
            projection_dim=24,
        )
        network = transformers.CLIPModel
    ids = torch.randint(2, 90, (2, 16))
    call = lambda m, i, p: m(input_ids=i, pixel_values=p).logits_per_image  # noqa: E731
    return built(config, network, call), (ids, pixels), ["input_ids", "pixel_values"]


def exports(names: Sequence[str], folder: Path) -> Iterator[tuple[str, Path | str]]:
    """The networks in every form: a name for the table, and the file or why there is none."""
    import torch  # noqa: PLC0415

    for name in names:
        for exporter, opsets in OPSETS.items():
            for opset in opsets:
                torch.manual_seed(0)
                network, inputs, called = of_timm(name) if name in TIMM else of_transformers(name)
                path = folder / f"{name}_{exporter}_{opset}.onnx".replace(", ", "_")
                dynamo = {"dynamo": exporter == "dynamo", "opset_version": opset, "verbose": False}
                shown = f"{name}, {exporter}, opset {opset}"
                try:
                    with torch.no_grad():
                        torch.onnx.export(
                            network.eval(), inputs, path, input_names=called, output_names=["y"], **dynamo
                        )
                except Exception as exc:  # noqa: BLE001 - exporters raise anything
                    yield shown, f"not exported: {' '.join(str(exc).split())[:80]}"
                    continue
                yield shown, path


def row(name: str, path: Path | str) -> tuple[str, ...]:
    """A line of the table."""
    if isinstance(path, str):
        return name, path, "", "", ""
    proto = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in proto.graph.initializer}
    types = {value.name: value.type.tensor_type for value in proto.graph.input if value.name not in weights}
    integers = {name: one for name, one in types.items() if one.elem_type == onnx.TensorProto.INT64}
    ids = {name: np.full([d.dim_value for d in one.shape.dim], 5) for name, one in integers.items()}
    choices = {"output": proto.graph.output[0].name} if ids else {}
    try:
        plain, libra = (
            check_completeness(path, options=Options(modifier=modifier, **choices), feeds=ids or None)
            for modifier in (None, "libra")
        )
    except ExplainError as exc:
        return name, str(exc).partition(" (node")[0], "", "", ""
    missing = [abs(one.numeric - one.analytic) for one in (plain, libra)]
    return name, f"{plain.numeric:.4g}", f"{missing[0]:.1e}", f"{missing[1]:.1e}", f"{libra.relative:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*TIMM, *TRANSFORMERS], help="networks to export")
    parser.add_argument("--models", nargs="+", type=Path, help="files instead of exports")
    parser.add_argument("--quick", action="store_true", help="one export only")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if given.models:
            files: Iterator[tuple[str, Path | str]] = ((path.stem, path) for path in given.models)
        else:
            names = ["vit"] if given.quick else given.only or [*TIMM, *TRANSFORMERS]
            files = exports(names, Path(folder))
        print(table(HEADER, []), flush=True)
        for name, path in files:
            print(line(row(name, path)), flush=True)


if __name__ == "__main__":
    main()
