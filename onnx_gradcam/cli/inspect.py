"""`onnx-gradcam inspect`."""

from __future__ import annotations

from .options import (
    Against,
    Box,
    Boxes,
    BoxRank,
    Channels,
    Combine,
    GradDtype,
    Image,
    Json,
    Layer,
    Mask,
    Method,
    ModelFile,
    Modifier,
    Outputs,
    Preset,
    Reference,
    Score,
    Task,
    Weights,
    chosen,
    model_source,
)

__all__ = ["inspect"]


def inspect(
    model: ModelFile,
    *,
    layer: Layer = None,
    method: Method = None,
    preset: Preset = None,
    modifier: Modifier = None,
    channels: Channels = None,
    combine: Combine = None,
    against: Against = None,
    weights: Weights = None,
    grad_dtype: GradDtype = None,
    score: Score = None,
    output: Outputs = None,
    task: Task = None,
    mask: Mask = None,
    boxes: Boxes = None,
    box_rank: BoxRank = None,
    box: Box = None,
    reference: Reference = None,
    image_input: Image = None,
    as_json: Json = False,
) -> None:
    """Show what of a model would be explained, how and why, without running it.

    \b
    Examples:
      onnx-gradcam inspect model.onnx
      onnx-gradcam inspect model.onnx --layer block3_out --json

    Prints inputs and outputs, the score and the layer that are chosen with the reason, the other layers that could be
    chosen, and the operators on the way that no gradient can cross. Where the model cannot be explained, the last
    line says why, and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from .inspecting import run  # noqa: PLC0415 - --help must not wait for it

    run(
        model_source(model),
        model,
        as_json=as_json,
        **chosen(
            layer=layer,
            method=method,
            preset=preset,
            modifier=modifier,
            channels=channels,
            combine=combine,
            against=against,
            weights=weights,
            grad_dtype=grad_dtype,
            score=score,
            output=output,
            task=task,
            mask=mask,
            boxes=boxes,
            box_rank=box_rank,
            box=box,
            reference=reference,
            image=image_input,
        ),
    )
