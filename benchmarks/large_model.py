"""Attach heatmaps to a model of several gigabytes without reading its external weights, save it and run it.

Run by hand (needs twice the model's size in the temporary folder)::

    python benchmarks/large_model.py                  # 2 GiB
    python benchmarks/large_model.py --gigabytes 0.01 --width 64

Time and peak memory of loading, attaching and saving are measured in a new process; imports are listed separately. The
explained model is saved in the model's own folder, where it refers to the weights, and in another folder, where the
weights are copied. Both files run in ONNX Runtime, and their scores are compared with the original's. All files go to a
temporary folder and are deleted. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import machine, table
from onnx import TensorProto, helper

BARS = {"seconds": 3.0, "megabytes": 300}
CLASSES = 1000
KERNEL = 3


def external(name: str, shape: Sequence[int], offset: int, location: str) -> TensorProto:
    """A float32 weight that is stored in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", 4 * math.prod(shape))):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write_model(path: Path, gigabytes: float, width: int) -> int:
    """Write a classifier of patches of 32, convolutions, pooling and a dense layer; He-initialized external weights.

    Returns:
        The size of the weights in bytes.
    """
    layers = max(1, math.ceil(gigabytes * 2**30 / (4 * (KERNEL * width) ** 2)))
    shapes = {"stem": (width, 3, 32, 32), "head": (CLASSES, width)}
    shapes |= {f"conv{i}": (width, width, KERNEL, KERNEL) for i in range(layers)}
    rng, offset, weights, nodes, here = np.random.default_rng(0), 0, [], [], "input"
    with path.with_suffix(".data").open("wb") as stream:
        for name, shape in shapes.items():
            weights.append(external(name, shape, offset, path.with_suffix(".data").name))
            values = rng.standard_normal(shape, np.float32)
            values *= np.float32(math.sqrt(2 / math.prod(shape[1:])))
            offset += stream.write(values.tobytes())
    for name in ("stem", *(f"conv{i}" for i in range(layers))):
        geometry = {"strides": [32, 32]} if name == "stem" else {"pads": [KERNEL // 2] * 4}
        nodes.append(helper.make_node("Conv", [here, name], [f"{name}_out"], name=name, **geometry))
        here = f"{name}_relu"
        nodes.append(helper.make_node("Relu", [f"{name}_out"], [here]))
    nodes.append(helper.make_node("GlobalAveragePool", [here], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return offset


def peak_megabytes() -> float:
    """The peak memory of this process.

    Linux counts the parent's memory in a child's `ru_maxrss`, so the process's own high-water mark is read if possible.
    """
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    kilobytes = int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024 / 1e6


def attach_here(model: Path, beside: Path, elsewhere: Path) -> dict[str, float]:
    """Attach in this process and return the seconds and the peak memory after every step."""
    measured: dict[str, float] = {}
    start = time.perf_counter()

    def note(step: str) -> None:
        measured[f"{step} s"], measured[f"{step} MB"] = time.perf_counter() - start, peak_megabytes()

    from onnx_gradcam.editor.attachment import attach  # noqa: PLC0415 - the import is measured

    note("import")
    explained = attach(model)
    note("attach")
    explained.save(beside)
    note("save beside")
    explained.save(elsewhere)
    note("save elsewhere")
    return measured


def run_here(model: Path) -> dict[str, Any]:
    """Run a model in this process and return its scores, and the shape and largest value of its heatmap, if any."""
    import onnxruntime as ort  # noqa: PLC0415 - must not count in the process that attaches

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    outputs = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"input": x}), strict=True))
    heatmap = outputs.get("heatmap", np.zeros(0))
    return {"logits": outputs["logits"].ravel().tolist(), "shape": heatmap.shape, "top": float(heatmap.max(initial=0))}


def child(*arguments: str | Path) -> Any:
    """The result of a step that runs in its own process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - this file
    return json.loads(done.stdout)


def measure(folder: Path, gigabytes: float, width: int) -> None:
    """Write the model, measure every step and print the results."""
    model, beside, elsewhere = folder / "large.onnx", folder / "explained.onnx", folder / "elsewhere" / "moved.onnx"
    elsewhere.parent.mkdir()
    size = write_model(model, gigabytes, width)
    print(f"{machine('onnx', 'onnx-ir', 'onnxruntime-gpu', 'onnxruntime')}; weights of {size / 2**30:.2f} GiB\n")
    measured = child("--attach", model, beside, elsewhere)
    rows, before = [], 0.0
    for step in ("import", "attach", "save beside", "save elsewhere"):
        seconds, megabytes = measured[f"{step} s"], measured[f"{step} MB"]
        rows.append([step, f"{seconds - before:.2f} s", f"{megabytes:.0f} MB"])
        before = seconds
    print(table(["step", "time", "peak memory of the process so far"], rows))
    seconds, megabytes = measured["save beside s"], measured["save beside MB"]
    print(
        f"\nImport, attach and save beside: {seconds:.2f} s (bar {BARS['seconds']:g} s), {megabytes:.0f} MB "
        f"(bar {BARS['megabytes']} MB). Files: {beside.stat().st_size / 1e3:.0f} kB beside the weights, "
        f"{sum(f.stat().st_size for f in elsewhere.parent.iterdir()) / 2**30:.2f} GiB in the other folder.\n"
    )
    original = np.array(child("--run", model)["logits"])
    rows = []
    for where, path in (("the model's folder", beside), ("the other folder", elsewhere)):
        result = child("--run", path)
        difference = np.abs(np.array(result["logits"]) - original).max() / np.abs(original).max()
        rows.append([where, f"{difference:.0e}", result["shape"], f"{result['top']:.3f}"])
    print(table(["run from", "largest relative difference of the scores", "heatmap", "largest value"], rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Attach a model of several gigabytes without reading its weights.")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the weights, in GiB")
    parser.add_argument("--width", type=int, default=2048, help="channels of every convolution")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder")
    parser.add_argument("--attach", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.attach is not None:
        print(json.dumps(attach_here(*chosen.attach)))
    elif chosen.run is not None:
        print(json.dumps(run_here(chosen.run)))
    else:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            measure(Path(folder), chosen.gigabytes, chosen.width)


if __name__ == "__main__":
    main()
