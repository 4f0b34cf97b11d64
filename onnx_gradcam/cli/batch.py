"""`onnx-gradcam batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from onnx_gradcam.options import BatchFormat

from ._options import (
    BoxIndex,
    BoxNumber,
    BoxRank,
    FeedValues,
    LeastScore,
    ModelPath,
    OutFolder,
    Provider,
    Targets,
    Threads,
    count,
    explains,
    option,
    read_feeds,
    selected_boxes,
)
from ._output import complain, say, warn

__all__ = ["batch"]


@explains(without=("target", "class_input", "expose_activation", "bake", "box", "box_rank"))
def batch(
    model: ModelPath,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Image files, folders with all images in and below them, or - for a list of paths on standard input, "
            "one per line.",
            show_default=False,
        ),
    ],
    *,
    out: OutFolder,
    format: Annotated[  # noqa: A002 - the option's name
        BatchFormat,
        option(
            "Output",
            "`parquet`: one table per shard, with a row for each class of each image. `npz`: arrays, `png`: heatmaps "
            "over the images, one file per image.",
        ),
    ] = "parquet",
    shard_size: Annotated[int, option("Output", "Images per shard.", min=1, max=65536, metavar="N")] = 256,
    resume: Annotated[
        bool, option("Output", "Continue the run in the folder, if there is one; repeat its options.", "--resume")
    ] = False,
    target: Targets = None,
    box: BoxNumber = None,
    box_rank: BoxRank = None,
    box_index: BoxIndex = None,
    least: LeastScore = None,
    feed: FeedValues = None,
    feed_table: Annotated[
        Path | None,
        option(
            "Image",
            "CSV file with values of other inputs for each image: a column `image` with paths, and a column named like "
            "each input, with values as --feed takes them.",
            metavar="FILE",
        ),
    ] = None,
    provider: Provider = "cpu",
    threads: Threads = None,
    batch_size: Annotated[int, count("Maximum number of images per run of the model.", max=1024)] = 8,
    engine: Annotated[
        Literal["local", "ray"],
        option("Runtime", "`local`: this computer. `ray`: the cluster at RAY_ADDRESS, or a new one here."),
    ] = "local",
    workers: Annotated[int | None, count("Ray only: number of workers. [default: as many as fit]")] = None,
    worker_cpus: Annotated[
        float, option("Runtime", "Ray only: CPUs per worker; fractions are allowed.", min=0.05, metavar="N")
    ] = 1.0,
    stall_timeout: Annotated[
        float, option("Runtime", "Ray only: stop when no shard is finished for this long.", min=1, metavar="SECONDS")
    ] = 600.0,
    choices: dict[str, Any],
) -> None:
    """Explain large image sets, locally or on a Ray cluster.

    \b
    Examples:
      onnx-gradcam batch model.onnx photos/ -o heatmaps/ --preprocess torchvision
      onnx-gradcam batch model.onnx photos/ -o heatmaps/ --feed-table patients.csv --feed age=61
      onnx-gradcam batch detector.onnx photos/ -o boxes/ --box all --least 0.4
      find / -name '*.jpg' | onnx-gradcam batch explained.onnx - -o heatmaps/ --format npz
      onnx-gradcam batch explained.onnx /shared/photos -o /shared/heatmaps --engine ray --resume

    Shards are written atomically: if the process is killed, the same command with --resume continues, and only the
    shards in progress are lost. Images that cannot be read are listed in _failures.jsonl; the exit code is 1 if no
    image could be explained.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.batching.ray_engine import RayCluster  # noqa: PLC0415 - --help must not wait for it
    from onnx_gradcam.batching.records import FAILURES  # noqa: PLC0415
    from onnx_gradcam.batching.running import batch as explain_images  # noqa: PLC0415

    from ._progress import rate  # noqa: PLC0415

    engines = {"local": None, "ray": RayCluster(workers, worker_cpus, stall_timeout)}
    with rate("explaining") as progress:
        summary = explain_images(
            model,
            images,
            out,
            target=list(target) if target else None,
            box=selected_boxes(box, box_rank, box_index, least, most=None),
            format=format,
            batch_size=batch_size,
            shard_size=shard_size,
            threads=threads,
            provider=provider,
            engine=engines[engine],
            resume=resume,
            progress=progress,
            warn=warn,
            feeds=read_feeds(feed),
            feed_table=feed_table,
            **choices,
        )
    resumed = f", {summary.resumed} of them by earlier runs" if summary.resumed else ""
    say(f"{_images(summary.explained)} explained{resumed}, in {out}")
    if summary.failures:
        message = f"{_images(summary.failures)} could not be explained; see {out / FAILURES}"
        (warn if summary.explained else complain)(message)
    if not summary.explained:
        raise typer.Exit(1)


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"
