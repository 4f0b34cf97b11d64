"""`onnx-gradcam triton` and `onnx-gradcam kserve`: files for other servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import ModelName, ModelPath, count, explains, option
from ._output import say

__all__ = ["kserve", "triton"]


@explains(without=("target", "class_input", "box", "box_rank", "reference", "probabilities"))
def triton(
    model: ModelPath,
    *,
    out: Annotated[Path, option("Output", "Model repository.", "-o", "--out", metavar="FOLDER", show_default=False)],
    name: ModelName = None,
    ensemble: Annotated[
        bool, option("Output", "Also write NAME_images, which takes JPEG, PNG and WebP files.", "--ensemble")
    ] = False,
    max_batch: Annotated[int, count("Maximum number of rows per batch; 0 for a model with a fixed batch.", min=0)] = 32,
    tensorrt: Annotated[bool, option("Runtime", "Run on TensorRT, on a GPU.", "--tensorrt")] = False,
    choices: dict[str, Any],
) -> None:
    """Write a Triton model repository.

    \b
    Examples:
      onnx-gradcam triton explained.onnx -o repository
      onnx-gradcam triton model.onnx -o repository --preprocess torchvision --ensemble

    The repository contains the explained model, its configuration, its labels and a README that shows how to start
    Triton. The class becomes a required input, -1 for the predicted class, and so does the box of a detector, -1 for
    the surest box.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.serve.repository import write_repository  # noqa: PLC0415 - --help must not wait for it

    for folder in write_repository(
        model, out, name=name, max_batch=max_batch, tensorrt=tensorrt, ensemble=ensemble, **choices
    ):
        say(f"wrote {folder}")


def kserve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.", show_default=False)],
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI",
            help="Location of the model, such as s3://models/shapes; without --image, of a model repository written by "
            "`onnx-gradcam triton`.",
            show_default=False,
        ),
    ],
    *,
    image: Annotated[
        str | None,
        option("Output", "Container image of onnx-gradcam, which answers all requests.", metavar="IMAGE"),
    ] = None,
    repository: Annotated[
        str | None,
        option(
            "Output",
            "With --image: location of a model repository for Triton, which answers all requests but `:explain`.",
            metavar="URI",
        ),
    ] = None,
    namespace: Annotated[str | None, option("Output", "Kubernetes namespace.", metavar="NAME")] = None,
    cpu: Annotated[str, option("Runtime", "CPUs, as a Kubernetes quantity.", metavar="QUANTITY")] = "2",
    memory: Annotated[str, option("Runtime", "Memory, as a Kubernetes quantity.", metavar="QUANTITY")] = "2Gi",
    gpus: Annotated[int, count("Number of NVIDIA GPUs.", min=0)] = 0,
    replicas: Annotated[int, count("Number of replicas.")] = 1,
) -> None:
    """Write a KServe InferenceService manifest.

    \b
    Examples:
      onnx-gradcam kserve shapes s3://models/shapes --image registry/onnx-gradcam:0.1.0 | kubectl apply -f -
      onnx-gradcam triton explained.onnx -o repository
      onnx-gradcam kserve shapes s3://models/repository | kubectl apply -f -

    The manifest is YAML on standard output.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.serve.manifests import write_manifest  # noqa: PLC0415 - --help must not wait for it

    manifest = write_manifest(
        name,
        uri,
        image=image,
        repository=repository,
        namespace=namespace,
        cpu=cpu,
        memory=memory,
        gpus=gpus,
        replicas=replicas,
    )
    say(manifest.rstrip())
