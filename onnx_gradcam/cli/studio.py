"""`onnx-gradcam studio`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from onnx_gradcam.errors import InputError

from ._images import find_images
from ._options import ModelPath, Provider, Threads, explains, flags, option
from ._output import say, warn

__all__ = ["STUDIO_NEEDS", "STUDIO_REMEDY", "studio"]

STUDIO_NEEDS = ("starlette", "uvicorn")
STUDIO_REMEDY = "run `pip install '.[studio]'` in a clone of onnx-gradcam"


@explains(without=("target", "class_input", "expose_activation", "box", "box_rank"))
def studio(
    model: ModelPath,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGES]", help="Image files, folders or quoted patterns to begin with."),
    ] = None,
    *,
    port: Annotated[
        int | None, option("Output", "Port on 127.0.0.1. [default: any free one]", min=1, max=65535, metavar="PORT")
    ] = None,
    browse: Annotated[bool, option("Output", "Open the address in the browser.", "--open")] = False,
    provider: Provider = "cpu",
    threads: Threads = None,
    choices: dict[str, Any],
) -> None:
    """Look at a model on a local page.

    \b
    Examples:
      onnx-gradcam studio model.onnx
      onnx-gradcam studio model.onnx photos/ --preprocess torchvision --labels names.txt --open

    Prints an address to open in a browser: drop images on the page, choose class, layer, methods and preprocessing, and
    copy the command that makes the same picture. The page answers this computer alone, and nothing leaves it. It needs
    Starlette and Uvicorn, which `pip install '.[studio]'` installs in a clone.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    try:
        from onnx_gradcam.studio.application import run_studio  # noqa: PLC0415 - --help must not wait for it
    except ModuleNotFoundError as error:
        raise InputError(f"the studio needs {error.name}, which is not installed; {STUDIO_REMEDY}") from error
    from onnx_gradcam.studio.workbench import MOST_IMAGES, Workbench  # noqa: PLC0415

    paths = find_images(images) if images else []
    if len(paths) > MOST_IMAGES:
        warn(f"the first {MOST_IMAGES} of {len(paths)} images are opened; drop others on the page")
    workbench = Workbench(
        model,
        paths[:MOST_IMAGES],
        provider=provider,
        threads=threads,
        spoken=flags,
        **choices,
    )
    run_studio(workbench, port=port or 0, notify=say, browse=browse)
