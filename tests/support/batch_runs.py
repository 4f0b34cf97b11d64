"""A small classifier, many small images, and what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

PREPROCESS = {"scale": 0.00392156862745098}


def classifier(path: Path, *, size: int | str = 16, seed: int = 3) -> Path:
    """Conv, Relu, pooling, Gemm over images of any or one size; four classes."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["active"], "relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "dense"], ["logits"], "gemm"),
    ]
    sides = [size, size] if isinstance(size, int) else ["H", "W"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, *sides])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(rng.standard_normal((6, 3, 3, 3)).astype(np.float32), "kernel"),
            numpy_helper.from_array(rng.standard_normal((6, 4)).astype(np.float32), "dense"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def draw(folder: Path, count: int, *, sizes: tuple[int, ...] = (20,), start: int = 0) -> list[str]:
    """Images of random blocks."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(start)
    paths = []
    for number in range(start, start + count):
        side = sizes[number % len(sizes)]
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(str(folder / f"{number:05d}.png"))
        cv2.imwrite(paths[-1], cv2.resize(blocks, (side, side), interpolation=cv2.INTER_NEAREST))
    return paths


def listed(out: Path) -> tuple[list[int], list[int]]:
    """The numbers of all images that were explained, and of those that failed, repetitions and all."""
    done: list[int] = []
    for shard in sorted(out.glob("part-*")):
        if (shard / "index.jsonl").is_file():
            entries = [json.loads(line) for line in (shard / "index.jsonl").read_text("utf-8").splitlines()]
            assert {e["file"] for e in entries} == {f.name for f in shard.glob("0*")}
            done += [e["image"] for e in entries]
        else:
            parquet = pytest.importorskip("pyarrow.parquet")
            done += parquet.read_table(shard / "explanations.parquet", columns=["image"])["image"].to_pylist()
    failed = [e["image"] for e in failures(out)]
    return sorted(done), sorted(failed)


def failures(out: Path) -> list[dict]:
    """What the run says of the images that failed."""
    return [json.loads(line) for line in (out / "_failures.jsonl").read_text("utf-8").splitlines()]
