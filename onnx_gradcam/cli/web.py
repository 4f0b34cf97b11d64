"""`onnx-gradcam web`.

A file of its own: each command is one file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ._options import ModelPath, OutFolder, explains, option
from ._output import say

__all__ = ["web"]


@explains(
    # Visitors choose class and box, and a page shows classifiers and detectors.
    without={"target", "class_input", "expose_activation", "mask", "box_rank", "box", "reference"}
)
def web(
    model: ModelPath,
    *,
    out: OutFolder,
    title: Annotated[
        str | None, option("Output", "Title of the page. [default: name of the model]", metavar="TEXT")
    ] = None,
    sample: Annotated[
        Path | None,
        option("Output", "Image to try the page with: JPEG, PNG or WebP. [default: drawn shapes]", metavar="FILE"),
    ] = None,
    runtime: Annotated[
        Path | None,
        option(
            "Runtime",
            "onnxruntime-web, as `npm pack` or `npm install` fetch it. [default: downloaded once from npm's registry]",
            metavar="FILE|FOLDER",
        ),
    ] = None,
    choices: dict[str, Any],
) -> None:
    """Write a web page that explains images in the browser.

    \b
    Examples:
      onnx-gradcam web explained.onnx -o site
      onnx-gradcam web model.onnx -o site --preprocess torchvision --labels names.txt
      onnx-gradcam web yolov8n.onnx -o site
      python -m http.server --directory site --bind 127.0.0.1

    Nothing is uploaded: the model runs in the visitor's browser, and any web server can host the folder.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.web.building import build_page  # noqa: PLC0415 - --help must not wait for it

    files = build_page(
        model,
        out,
        runtime=runtime,
        title=title,
        sample=sample,
        notify=say,
        **choices,
    )
    say(f"wrote {len(files)} files into {out}")
    say(
        f"to see the page, run: python -m http.server --directory {out} --bind 127.0.0.1; then open http://127.0.0.1:8000"
    )
