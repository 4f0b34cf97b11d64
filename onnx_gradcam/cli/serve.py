"""`onnx-gradcam serve`."""

from __future__ import annotations

from typing import Annotated, Any

from onnx_gradcam.errors import InputError

from ._options import ModelName, ModelPath, Provider, count, explains, option

__all__ = ["serve"]


def _port(help: str) -> Any:  # noqa: A002 - typer's own word
    return option("Output", help, min=1, max=65535, metavar="PORT")


@explains(without=("target", "class_input", "expose_activation"))
def serve(
    model: ModelPath,
    *,
    name: ModelName = None,
    host: Annotated[
        str, option("Output", "IP address to listen on; 0.0.0.0 is all networks.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, _port("REST port.")] = 8080,
    grpc_port: Annotated[int, _port("gRPC port.")] = 8081,
    metrics_port: Annotated[int, _port("Port of Prometheus metrics, at /metrics.")] = 8082,
    provider: Provider = "cpu",
    threads: Annotated[int | None, count("Number of CPU threads. [default: chosen by ONNX Runtime]")] = None,
    batch_size: Annotated[int, count("Maximum number of rows, of all requests, per run of the model.")] = 8,
    max_pending: Annotated[int, count("Maximum number of pending requests; others get status 429.")] = 64,
    max_rows: Annotated[int, count("Maximum number of images times classes per request.")] = 32,
    max_request: Annotated[int, count("Maximum size of a request.", metavar="MB")] = 32,
    max_image: Annotated[int, count("Maximum size of an image file.", metavar="MB")] = 20,
    max_pixels: Annotated[int, count("Maximum size of an image, in millions of pixels.")] = 24,
    timeout: Annotated[float, option("Runtime", "Maximum duration of a request.", min=0.001, metavar="SECONDS")] = 30.0,
    choices: dict[str, Any],
) -> None:
    """Serve a model and its heatmaps over REST and gRPC.

    \b
    Examples:
      onnx-gradcam serve explained.onnx
      onnx-gradcam serve model.onnx --preprocess torchvision --labels names.txt --host 0.0.0.0

    Send tensors to get the model's outputs and heatmaps, or images to get scores, labels and overlays. The protocol is
    the Open Inference Protocol, served by MLServer, which `pip install '.[serve]'` installs in a clone.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.serve.limits import Limits  # noqa: PLC0415 - --help must not wait for it

    try:
        from onnx_gradcam.serve.server import Address  # noqa: PLC0415
        from onnx_gradcam.serve.server import serve as serve_model  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InputError(
            f"the server needs {error.name}, which is not installed; run `pip install '.[serve]'` in a clone of "
            "onnx-gradcam (Python 3.10 to 3.12)"
        ) from error
    serve_model(
        model,
        name=name,
        address=Address(host=host, http=port, grpc=grpc_port, metrics=metrics_port),
        limits=Limits(
            request_bytes=max_request << 20,
            image_bytes=max_image << 20,
            image_pixels=max_pixels * 1_000_000,
            rows=max_rows,
            batch=batch_size,
            pending=max_pending,
            seconds=timeout,
        ),
        provider=provider,
        threads=threads,
        **choices,
    )
