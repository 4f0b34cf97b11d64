"""Compare the throughput of `onnx-gradcam batch` with that of plain ONNX Runtime on decoded images.

    pip install '.[batch]'
    python benchmarks/batch.py
    python benchmarks/batch.py --network mobilenet_v2 --images 5000 --formats parquet npz

The reference is the original model in a default session of ONNX Runtime, run on tensors in memory: nothing is read,
decoded, explained or written. Both sides process the same images block by block in one process, and change their order
after every block. Prints markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from measure import machine, table
from networks import build

from onnx_gradcam.batching.job import Crew, Job
from onnx_gradcam.batching.records import Shard, cut
from onnx_gradcam.batching.running import run_locally
from onnx_gradcam.runtime.explainer import Prepared
from onnx_gradcam.runtime.session import Session

PREPROCESSING = {"size": [224, 224], "resize": "short_crop", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}


def photographs(folder: Path, count: int, side: int = 256) -> list[Path]:
    """JPEG files of smooth noise with an edge, about as large and as slow to decode as photographs of that size."""
    rng = np.random.default_rng(5)
    paths = []
    for number in range(count):
        small = rng.integers(0, 256, (side // 8, side // 6, 3), dtype=np.uint8)
        image = cv2.resize(small, (side * 4 // 3, side), interpolation=cv2.INTER_CUBIC)
        image[side // 4 :, side // 3 : side] //= 2
        paths.append(folder / f"{number:05d}.jpg")
        cv2.imwrite(str(paths[-1]), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def seconds(call: Callable[[], object]) -> float:
    """The time that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    plain: Callable[[Shard], object], whole: Callable[[list[Shard]], object], blocks: Sequence[list[Shard]]
) -> npt.NDArray[np.float64]:
    """Seconds of both sides for every block, `[blocks, 2]`."""
    times = np.zeros((len(blocks), 2))
    for turn, block in enumerate(blocks):
        sides: list[Callable[[], object]] = [lambda b=block: [plain(s) for s in b], lambda b=block: whole(b)]  # type: ignore[misc]
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            times[turn, side] = seconds(sides[side])
    return times


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--different", type=int, default=100, help="number of different images among them")
    parser.add_argument("--block", type=int, default=500, help="images per block; four shards")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--formats", nargs="+", default=["parquet"])
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model.onnx"
        onnx.save(build(options.network, size=224), model)
        files = [str(path) for path in photographs(folder, options.different)]
        paths = [files[i % len(files)] for i in range(options.images)]
        for form in options.formats:
            job = Job(
                model=model,
                format=form,
                batch_size=options.batch_size,
                shard_size=max(1, options.block // 4),
                choices={"preprocess": PREPROCESSING},
            )
            times = measure(job, paths, folder / form, options.block)
            rates = options.images / times.sum(0)
            ratios = times[:, 0] / times[:, 1]
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            rows.append(
                [form, f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{middle:.3f} ({low:.3f} to {high:.3f})", len(ratios)]
            )
    print(
        f"{options.network}, {options.images} images, batch size {options.batch_size}, "
        f"{machine('onnxruntime-gpu', 'onnxruntime', 'opencv-python', 'pyarrow')}\n"
    )
    print(table(["format", "plain, images/s", "batch, images/s", "rate of batch / plain", "blocks"], rows))


def measure(job: Job, paths: Sequence[str], out: Path, block: int) -> npt.NDArray[np.float64]:
    """Seconds of plain inference and of the batch job, for every block of images."""
    plain, crew = Session(job.model), Crew(job)
    decoded: dict[str, Any] = {}
    for path in dict.fromkeys(paths):
        image = crew.explainer.prepared(path)
        assert isinstance(image, Prepared)
        decoded[path] = image.tensor
    (name,) = (one.name for one in plain.inputs)

    def infer(shard: Shard) -> None:
        for start in range(0, len(shard.paths), job.batch_size):
            plain.run({name: np.stack([decoded[path] for path in shard.paths[start : start + job.batch_size]])})

    def explain(shards: list[Shard]) -> None:
        assert sum(r.images - r.failures for r in run_locally(crew, iter(shards), out, lambda _: None)) == sum(
            len(shard.paths) for shard in shards
        )

    shards = list(cut(paths, job.shard_size))
    each = max(1, block // job.shard_size)
    warm = [Shard(99_999_990 + i, 0, list(paths[: 2 * job.batch_size])) for i in range(2)]
    infer(warm[0])
    explain(warm)
    times = compare(infer, explain, [shards[i : i + each] for i in range(0, len(shards), each)])
    crew.close()
    return times


if __name__ == "__main__":
    main()
