"""What stands beside a model in a Triton repository, for whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_gradcam.metadata import Metadata

from .triton_config import Port

__all__ = ["readme"]

_TEXT = """# {name}

An image classifier that explains itself ({method}, layer `{layer}`), written by onnx-gradcam {version}.

    docker run --rm --user 1000:1000 -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 \\
      -v "$PWD:/models:ro" nvcr.io/nvidia/tritonserver:26.02-py3 \\
      tritonserver --model-repository=/models --model-control-mode=none --http-max-input-size=67108864

in the repository, the folder above this one. REST is on port 8000, gRPC on 8001, metrics on 8002.

| tensor | | type | shape as sent |
|---|---|---|---|
{table}
{notes}
## Before it is reachable

- Use release 26.02 or later. Earlier ones have known holes, among them CVE-2025-23310, -23311, -23317, -23319, -23320
  and -23334 (before 25.07), -23316 (before 25.08) and -23327 (before 25.05); they let a request run code or end the
  server.
- Triton has no accounts and listens on every network by itself: keep it behind a gateway that says who may ask, and
  publish its ports on loopback only, as above.
- Keep `--model-control-mode=none`, and mount repositories that nobody else can write to: a model is code.
- Limit requests in the gateway too: their size, their number and their time.
- `/v2/health/live` and `/v2/health/ready` are for probes, `nv_inference_*` on port 8002 for monitoring.
"""

_CLASS = """
`{name}` is the class to explain, one a row; negative is the class with the highest score. It has to be sent.
A class that the model does not have fails the request, with whatever else is in its batch.
"""
_LEFT_OUT = """
The model also has {names}, which have no batch axis and cannot be asked for here.
"""
_ENSEMBLE = """
## Pictures

`{name}_pictures` takes picture files (JPEG, PNG, WebP) in `image_bytes`, one a row, and the class in `target_class`,
which may be left out. Its first step, `{name}_preprocess`, runs in Triton's Python backend and needs, in the image:

    pip install --no-deps onnx-gradcam opencv-python-headless && pip install numpy

It reads a picture's size from its header and refuses large ones before they are decoded: `limits` in its config.pbtxt.
"""


def readme(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    left_out: Sequence[str],
    metadata: Metadata,
    *,
    ensemble: bool,
) -> str:
    """The text, in Markdown."""
    rows = [f"| `{p.name}` | {word} | {p.dtype} | {_shape(p)} |" for word, ps in _named(inputs, outputs) for p in ps]
    notes = _CLASS.format(name=metadata.class_input) if metadata.class_input else ""
    if left_out:
        notes += _LEFT_OUT.format(names=", ".join(f"`{one}`" for one in left_out))
    if ensemble:
        notes += _ENSEMBLE.format(name=name)
    return _TEXT.format(
        name=name,
        method=metadata.method,
        layer=metadata.target_tensor,
        version=metadata.version,
        table="\n".join(rows),
        notes=notes,
    )


def _named(inputs: Sequence[Port], outputs: Sequence[Port]) -> Sequence[tuple[str, Sequence[Port]]]:
    return [("in", inputs), ("out", outputs)]


def _shape(port: Port) -> str:
    sizes = [str(size) if size > 0 else "N" for size in port.shape]
    return "[" + ", ".join(sizes if len(sizes) > 1 else [*sizes, "1"]) + "]"
