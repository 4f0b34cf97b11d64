"""`onnx-gradcam kserve`."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import say

__all__ = ["kserve"]


def kserve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the service.", show_default=False)],
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI", help="Where the repository lies that `triton` has written, as s3://...", show_default=False
        ),
    ],
    *,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Of Kubernetes.")] = None,
    cpu: Annotated[str, typer.Option(metavar="QUANTITY", help="CPUs, as Kubernetes writes them.")] = "2",
    memory: Annotated[str, typer.Option(metavar="QUANTITY", help="Memory, as Kubernetes writes it.")] = "2Gi",
    gpus: Annotated[int, typer.Option(min=0, metavar="NUMBER", help="NVIDIA GPUs.")] = 0,
    replicas: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Servers of the same model.")] = 1,
) -> None:
    """Print the manifest of a KServe InferenceService, which serves a model repository with Triton.

    \b
    Examples:
      onnx-gradcam triton explained.onnx -o repository
      onnx-gradcam kserve shapes s3://models/repository | kubectl apply -f -
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.serve.manifests import write_manifest  # noqa: PLC0415 - --help must not wait for it

    say(write_manifest(name, uri, namespace=namespace, cpu=cpu, memory=memory, gpus=gpus, replicas=replicas).rstrip())
