"""`onnx-gradcam kserve`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import option
from ._output import say

__all__ = ["kserve"]


def kserve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.", show_default=False)],
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI",
            help="Location of a model repository written by `onnx-gradcam triton`, such as s3://models/repository.",
            show_default=False,
        ),
    ],
    *,
    namespace: Annotated[str | None, option("Output", "Kubernetes namespace.", metavar="NAME")] = None,
    cpu: Annotated[str, option("Runtime", "CPUs, as a Kubernetes quantity.", metavar="QUANTITY")] = "2",
    memory: Annotated[str, option("Runtime", "Memory, as a Kubernetes quantity.", metavar="QUANTITY")] = "2Gi",
    gpus: Annotated[int, option("Runtime", "Number of NVIDIA GPUs.", min=0, metavar="N")] = 0,
    replicas: Annotated[int, option("Runtime", "Number of replicas.", min=1, metavar="N")] = 1,
) -> None:
    """Write a KServe InferenceService manifest, to standard output.

    \b
    Examples:
      onnx-gradcam triton explained.onnx -o repository
      onnx-gradcam kserve shapes s3://models/repository | kubectl apply -f -
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.serve.manifests import write_manifest  # noqa: PLC0415 - --help must not wait for it

    say(write_manifest(name, uri, namespace=namespace, cpu=cpu, memory=memory, gpus=gpus, replicas=replicas).rstrip())
