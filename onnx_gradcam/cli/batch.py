"""`onnx-gradcam batch`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Channels,
    GradDtype,
    Image,
    Labels,
    Layer,
    Method,
    Modifier,
    Output,
    Preprocess,
    Preset,
    Profile,
    Score,
    Weights,
    chosen,
)
from .output import complain, say, warn
from .progress import rate

__all__ = ["EngineKind", "FormatKind", "batch"]


class EngineKind(str, Enum):
    """Where the work is done."""

    LOCAL = "local"
    RAY = "ray"


class FormatKind(str, Enum):
    """Of the results."""

    PARQUET = "parquet"
    NPZ = "npz"
    PNG = "png"


def batch(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file, explained or not.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Folders, with all images in and below them, images, or - for a list on standard input, one path "
            "a line.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the shards are written.")],
    engine: Annotated[
        EngineKind, typer.Option(help="`local`: this computer. `ray`: the cluster at RAY_ADDRESS, or a new one here.")
    ] = EngineKind.LOCAL,
    form: Annotated[
        FormatKind,
        typer.Option(
            "--format",
            help="`parquet`: one table a shard, a row for each class of each image. `npz`: arrays, `png`: the "
            "heatmap over the photo; one file for each image, and an index.",
        ),
    ] = FormatKind.PARQUET,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, if there is one; repeat what was given.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="The class to explain: its number, its name, or top3; may be given several times. [default: the class "
            "with the highest score]",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="The most images that the model runs at once.")
    ] = 8,
    shard_size: Annotated[
        int, typer.Option(min=1, max=65536, metavar="N", help="Images in a shard: what a kill may cost.")
    ] = 256,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processor threads, locally. [default: all cores]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With ray: actors. [default: all that there is room for]")
    ] = None,
    worker_cpus: Annotated[
        float, typer.Option(min=0.05, metavar="N", help="With ray: CPUs of an actor, fractions allowed.")
    ] = 1.0,
    stall_timeout: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="With ray: stop where no shard is finished for so long."),
    ] = 600.0,
    labels: Labels = None,
    preprocess: Preprocess = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Where to run: cpu, cuda, tensorrt ...; `doctor` lists what is there.")
    ] = "cpu",
    layer: Layer = None,
    method: Method = None,
    preset: Preset = None,
    modifier: Modifier = None,
    channels: Channels = None,
    weights: Weights = None,
    profile: Profile = None,
    grad_dtype: GradDtype = None,
    score: Score = None,
    output: Output = None,
    image_input: Image = None,
) -> None:
    """Explain any number of images, into shards that are whole or not there.

    \b
    Examples:
      onnx-gradcam batch model.onnx photos/ -o heatmaps/ --preprocess torchvision
      find / -name '*.jpg' | onnx-gradcam batch explained.onnx - -o heatmaps/ --format npz
      onnx-gradcam batch explained.onnx /shared/photos -o /shared/heatmaps --engine ray --resume

    After a kill the same command with --resume goes on: nothing is lost, nothing is done twice. An image that cannot
    be read is listed in _failures.jsonl, and the others go on; the exit code is 1 where none could be explained.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    # Imported here, as --help must not wait for it.
    from onnx_gradcam.batching.ray_engine import RayCluster  # noqa: PLC0415
    from onnx_gradcam.batching.records import FAILURES  # noqa: PLC0415
    from onnx_gradcam.batching.running import batch as explain_images  # noqa: PLC0415

    with rate("explaining") as progress:
        summary = explain_images(
            model,
            images,
            out,
            engine=RayCluster(workers, worker_cpus, stall_timeout) if engine is EngineKind.RAY else None,
            format=form.value,
            resume=resume,
            target=list(target) if target else None,
            batch_size=batch_size,
            shard_size=shard_size,
            threads=threads,
            provider=provider,
            progress=progress,
            warn=warn,
            **chosen(
                labels=labels,
                preprocess=preprocess,
                layer=layer,
                method=method,
                preset=preset,
                modifier=modifier,
                channels=channels,
                weights=weights,
                profile=profile,
                grad_dtype=grad_dtype,
                score=score,
                output=output,
                image=image_input,
            ),
        )
    again = f", {summary.resumed} of them before" if summary.resumed else ""
    say(f"{counted(summary.explained, 'image')} explained{again}, in {out}")
    if summary.failures:
        failed = f"{counted(summary.failures, 'image')} could not be explained; see {out / FAILURES}"
        (warn if summary.explained else complain)(failed)
    if not summary.explained:
        raise typer.Exit(1)


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
