"""What `export` does: read with one of the exporters, finish, write, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_gradcam.editor.targets.classes import read_labels
from onnx_gradcam.errors import ModelError
from onnx_gradcam.exporters.finishing import Exported, finish_export
from onnx_gradcam.exporters.writer import Product
from onnx_gradcam.images.preprocessing import parse_preprocessing

from .output import say, say_json, shape, warn
from .progress import stages

__all__ = ["export_keras", "export_mxnet", "export_onnx", "export_pytorch", "export_tflite"]


def export_keras(
    source: str,
    out: Path,
    *,
    via: str,
    layer: str | None,
    custom: str | None,
    trust: bool,
    python: Path | None,
    **choices: Any,
) -> None:
    """Export a Keras model; see the options of the command.

    Raises:
        ExplainError: it cannot be exported this way; nothing is written.
    """

    def read() -> Product:
        if via == "reader":
            from onnx_gradcam.exporters.keras import read_keras  # noqa: PLC0415 - one reader is needed

            return read_keras(source)
        from onnx_gradcam.exporters.elsewhere import read_keras_with  # noqa: PLC0415

        return read_keras_with(
            "tf" if via == "tf" else "torch", source, layer=layer, custom=custom, trust=trust, python=python
        )

    _export(read, [source], out, layer=layer, **choices)


def export_mxnet(symbol: Path, params: Path, out: Path, *, shape: tuple[int, ...] | None, **choices: Any) -> None:
    """Export an MXNet model; see the options of the command.

    Raises:
        ExplainError: it cannot be exported; nothing is written.
    """
    from onnx_gradcam.exporters.mxnet import read_mxnet  # noqa: PLC0415 - no other framework's code is loaded

    _export(lambda: read_mxnet(symbol, params, input_shape=shape), [symbol, params], out, **choices)


def export_pytorch(source: str, out: Path, *, layer: str | None, **how: Any) -> None:
    """Export a PyTorch model; see the options of the command.

    Raises:
        ExplainError: it cannot be exported; nothing is written.
    """
    reading = {key: how.pop(key) for key in ("weights", "call", "size", "exporter", "trust")}

    def read() -> Product:
        from onnx_gradcam.exporters import pytorch  # noqa: PLC0415 - may take torch

        return pytorch.export_pytorch(source, layer=layer, **reading)

    _export(read, [source, reading["weights"] or source], out, layer=layer, **how)


def export_tflite(source: Path, out: Path, *, python: Path | None, **choices: Any) -> None:
    """Export a TFLite model; see the options of the command.

    Raises:
        ExplainError: it cannot be exported; nothing is written.
    """
    from onnx_gradcam.exporters.elsewhere import read_tflite  # noqa: PLC0415

    _export(lambda: read_tflite(source, python=python), [source], out, **choices)


def export_onnx(source: Path, out: Path, **choices: Any) -> None:
    """Export an ONNX model; see the options of the command.

    Raises:
        ExplainError: it cannot be exported; nothing is written.
    """
    from onnx_gradcam.exporters.sources import read_onnx  # noqa: PLC0415

    _export(lambda: read_onnx(source), [source], out, **choices)


def _export(
    read: Callable[[], Product],
    sources: Sequence[str | Path],
    out: Path,
    *,
    layer: str | None,
    output: str | None = None,
    labels: Path | None = None,
    preprocess: str | None = None,
    as_json: bool = False,
) -> None:
    """Read, finish, write, report.

    Args:
        read: the exporter.
        sources: the files that it reads.
        out: where the model goes.
        layer: name of the target layer.
        output: the output that holds the scores.
        labels: file of class names.
        preprocess: how images become the input.
        as_json: print JSON.
    """
    _check_place(out, sources)
    names = None if labels is None else read_labels(labels)
    described = None if preprocess is None else parse_preprocessing(preprocess).to_dict()
    with stages(f"reading {sources[0]}", "exposing the layer", f"writing {out}") as begin_next:
        product = read()
        begin_next()
        made = finish_export(product, layer, output=output, labels=names, preprocessing=described)
        _check_preprocessing(made)
        begin_next()
        made.save(out)
    for warning in made.warnings:
        warn(warning)
    if as_json:
        say_json(_facts(made, out))
    else:
        _say(made, out)


def _check_place(out: Path, sources: Sequence[str | Path]) -> None:
    """Refuse before minutes of work what could not be written after it.

    Raises:
        ModelError: the place is no place for the model.
    """
    if str(out) == "-":
        raise ModelError("an export goes to a file, not to standard output; give -o a name")
    if out.resolve() in {Path(source).resolve() for source in sources}:
        raise ModelError(f"{out}: this is the model itself; choose another name with -o")
    if out.is_dir() or not out.resolve().parent.is_dir():
        what = "is a folder; give the name of a file in it" if out.is_dir() else "lies in a folder that is not there"
        raise ModelError(f"{out}: {what}")


def _check_preprocessing(made: Exported) -> None:
    """Refuse a description that contradicts the model now rather than when the first image comes."""
    described = made.carried.preprocessing
    if described is not None and made.image_layout in {"NCHW", "NHWC"}:
        parse_preprocessing(described).for_input(made.image_layout, made.image_shape, made.image_dtype)


def _facts(made: Exported, out: Path) -> dict[str, Any]:
    carried = made.carried
    return {
        "model": str(out),
        "framework": carried.framework,
        "framework_version": carried.framework_version,
        "target": made.target,
        "shape": list(made.shape),
        "layout": made.layout,
        "reason": made.reason,
        "scores_output": made.score,
        "score_kind": carried.score_kind,
        "layers": {name: asdict(layer) for name, layer in carried.layers.items()},
        "labels": carried.labels,
        "preprocessing": carried.preprocessing,
        "parity": carried.parity,
        "warnings": made.warnings,
    }


def _say(made: Exported, out: Path) -> None:
    carried = made.carried
    origin = " ".join(filter(None, (carried.framework, carried.framework_version)))
    say(f"{out}: from {origin}, with the output {made.target!r} {shape(made.shape)} {made.layout}.")
    say(f"Layer: {made.reason}.")
    say(f"Scores: {made.score!r} ({carried.score_kind}).")
    if carried.parity:
        say(f"Compared with {carried.framework}: {carried.parity}.")
    if carried.layers:
        say(f"{len(carried.layers)} layers can be named with --layer; `onnx-gradcam inspect {out}` lists them.")
    known = [
        what for what, there in (("class names", carried.labels), ("preprocessing", carried.preprocessing)) if there
    ]
    say(f"It carries {' and '.join(known)}." if known else "It carries neither class names nor preprocessing.")
