"""`onnx-gradcam serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Image, Labels, Layer, Method, Output, Preprocess, Preset, Profile, Score, Weights, chosen

__all__ = ["serve"]


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file, explained or not.")],
    *,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the model in requests. [default: that of the file]")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every network there is.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="NUMBER", help="Of REST.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, metavar="NUMBER", help="Of gRPC.")] = 8081,
    metrics_port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="NUMBER", help="Of Prometheus metrics, at /metrics.")
    ] = 8082,
    labels: Labels = None,
    preprocess: Preprocess = None,
    provider: Annotated[str, typer.Option(metavar="NAME", help="The execution provider: cpu, cuda ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Of the CPU. [default: ONNX Runtime's choice]")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="The most rows, of whatever requests, that run together.")
    ] = 8,
    max_pending: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="Requests that may wait; the next is refused with 429.")
    ] = 64,
    max_rows: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Images times classes in one request.")] = 32,
    max_request: Annotated[int, typer.Option(min=1, metavar="MB", help="The largest request.")] = 32,
    max_image: Annotated[int, typer.Option(min=1, metavar="MB", help="The largest image file.")] = 20,
    max_pixels: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="The largest image, in millions of pixels.")
    ] = 24,
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="The most time for a request.")] = 30.0,
    layer: Layer = None,
    method: Method = None,
    preset: Preset = None,
    weights: Weights = None,
    profile: Profile = None,
    score: Score = None,
    output: Output = None,
    image_input: Image = None,
) -> None:
    """Serve a model with its explanation: the Open Inference Protocol over REST and gRPC, by MLServer.

    \b
    Examples:
      onnx-gradcam serve explained.onnx
      onnx-gradcam serve model.onnx --preprocess torchvision --labels names.txt --host 0.0.0.0

    Tensors in, the model's outputs and heatmap out; or images in, scores, labels and overlays out. It listens on
    this computer alone unless --host says otherwise. Needs `pip install 'onnx-gradcam[serve]'`.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from .serving import run  # noqa: PLC0415 - --help must not wait for it

    run(
        model,
        name=name,
        ports=(port, grpc_port, metrics_port),
        host=host,
        limits={
            "request_bytes": max_request << 20,
            "image_bytes": max_image << 20,
            "image_pixels": max_pixels * 1_000_000,
            "rows": max_rows,
            "batch": batch_size,
            "pending": max_pending,
            "seconds": timeout,
        },
        provider=provider,
        **chosen(
            labels=labels,
            preprocess=preprocess,
            threads=threads,
            layer=layer,
            method=method,
            preset=preset,
            weights=weights,
            profile=profile,
            score=score,
            output=output,
            image=image_input,
        ),
    )
