"""`onnx-gradcam serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnx_gradcam.errors import InputError

from ._options import FeedValues, Provider, count, explains, option, read_feeds

__all__ = ["serve"]


_NAMES = {"name": ("--name", "--model_name"), "port": ("--port", "--http_port")}
"""Options that KServe appends to the arguments of an explainer, under names of its own."""


def _port(help: str, *flags: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    return option("Output", help, *flags, min=1, max=65535, metavar="PORT", **more)


@explains(without=("target", "class_input", "expose_activation", "probabilities"))
def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, explained or not, or a folder of them.")],
    *,
    name: Annotated[
        str | None,
        option("Output", "Name of the model in requests. [default: that of the file]", *_NAMES["name"], metavar="NAME"),
    ] = None,
    host: Annotated[
        str, option("Output", "IP address to listen on; 0.0.0.0 is all networks.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, _port("REST port.", *_NAMES["port"], envvar="AIP_HTTP_PORT")] = 8080,
    grpc_port: Annotated[int, _port("gRPC port.")] = 8081,
    token_file: Annotated[
        Path | None, option("Output", "File with the token that requests have to send.", metavar="FILE")
    ] = None,
    tls_cert: Annotated[Path | None, option("Output", "Certificate for TLS, PEM.", metavar="FILE")] = None,
    tls_key: Annotated[Path | None, option("Output", "Key of the certificate, PEM.", metavar="FILE")] = None,
    log_requests: Annotated[
        Path | None, option("Output", "Log a sample of the answers about images into this folder.", metavar="FOLDER")
    ] = None,
    log_sample: Annotated[
        float, option("Output", "Share of the images whose answers are logged.", min=0.0, max=1.0, metavar="SHARE")
    ] = 0.01,
    log_images: Annotated[bool, option("Output", "Log the image files too.", "--log-images")] = False,
    log_shards: Annotated[
        int, option("Output", "Maximum number of shards of the log; older ones are removed.", min=1, metavar="N")
    ] = 100,
    feed: FeedValues = None,
    provider: Provider = "cpu",
    threads: Annotated[int | None, count("Number of CPU threads. [default: chosen by ONNX Runtime]")] = None,
    workers: Annotated[int, count("Requests that are decoded, run and encoded at the same time.")] = 8,
    batch_size: Annotated[int, count("Maximum number of rows, of all requests, per run of the model.")] = 8,
    max_pending: Annotated[int, count("Maximum number of pending requests; others get status 429.")] = 64,
    max_rows: Annotated[int, count("Maximum number of images times classes per request.")] = 32,
    max_request: Annotated[int, count("Maximum size of a request.", metavar="MB")] = 32,
    max_image: Annotated[int, count("Maximum size of an image file.", metavar="MB")] = 20,
    max_pixels: Annotated[int, count("Maximum size of an image, in millions of pixels.")] = 24,
    timeout: Annotated[float, option("Runtime", "Maximum duration of a request.", min=0.001, metavar="SECONDS")] = 30.0,
    predictor_host: Annotated[str | None, option("Output", "", "--predictor_host", hidden=True)] = None,  # noqa: ARG001
    choices: dict[str, Any],
) -> None:
    """Serve a model and its heatmaps over REST and gRPC.

    \b
    Examples:
      onnx-gradcam serve explained.onnx
      onnx-gradcam serve model.onnx --preprocess torchvision --labels names.txt --host 0.0.0.0
      onnx-gradcam serve models/

    Send tensors to get the model's outputs and heatmaps, or images to get scores, labels and overlays: by the Open
    Inference Protocol, by the verbs `predict` and `explain`, or as a file. A folder of models may contain `models.toml`
    with the options of each. In a clone, `pip install '.[serve]'` installs what the server needs.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.serve.limits import Limits  # noqa: PLC0415 - --help must not wait for it

    try:
        from onnx_gradcam.serve.recording import Recording  # noqa: PLC0415
        from onnx_gradcam.serve.server import Address, Security  # noqa: PLC0415
        from onnx_gradcam.serve.server import serve as serve_model  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InputError(
            f"the server needs {error.name}, which is not installed; run `pip install '.[serve]'` in a clone of "
            "onnx-gradcam"
        ) from error
    recording = None
    if log_requests is not None:
        recording = Recording(folder=log_requests, sample=log_sample, images=log_images, shards=log_shards)
    serve_model(
        model,
        name=name,
        address=Address(host=host, http=port, grpc=grpc_port),
        limits=Limits(
            request_bytes=max_request << 20,
            image_bytes=max_image << 20,
            image_pixels=max_pixels * 1_000_000,
            rows=max_rows,
            batch=batch_size,
            workers=workers,
            pending=max_pending,
            seconds=timeout,
        ),
        security=Security(token_file=token_file, tls_cert=tls_cert, tls_key=tls_key),
        recording=recording,
        provider=provider,
        threads=threads,
        feeds=read_feeds(feed),
        **choices,
    )
