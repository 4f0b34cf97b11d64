"""Measure the cost of an explanation, relative to a plain forward pass, for this package and for PyTorch's tools.

Run by hand::

    python benchmarks/latency.py                     # everything, a few minutes
    python benchmarks/latency.py --networks resnet50 --batches 1 --runs 60
    python benchmarks/latency.py --quick             # small, to check that it runs

All sides alternate in one process. A figure is the median of the ratios of neighboring runs, with their quartiles.
ONNX Runtime is compared with ONNX Runtime; PyTorch (if it is installed with torchvision, grad-cam and captum) is
compared with PyTorch's own plain forward pass under `inference_mode`, on the same weights. Prints markdown.

On a busy machine, give it real-time priority (`chrt -f 10 python ...` on Linux). Ignore figures with distant quartiles.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from measure import Ratio, alternate, line, machine, table
from networks import TORCH_LAYERS, build, photo_like, torch_network

from onnx_gradcam.editor.attachment import Explained, attach

BARS = {"resnet50": 1.05, "mobilenet_v2": 1.05, "squeezenet1_1": 1.05, "vgg16": 1.15}
CLASS = 7


def session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """A CPU session whose threads do not spin between runs, so that they take no time from the other side."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def explained_sides(
    model: onnx.ModelProto, explained: Explained, threads: int
) -> Callable[[npt.NDArray[np.float32]], tuple[Callable[[], Any], Callable[[], Any]]]:
    """The plain and the explained model in ONNX Runtime, for a batch."""
    plain, with_map = session(model, threads), session(explained.to_proto(), threads)
    chosen = {explained.metadata.class_input: np.array([CLASS], np.int64)}

    def sides(x: npt.NDArray[np.float32]) -> tuple[Callable[[], Any], Callable[[], Any]]:
        return lambda: plain.run(None, {"input": x}), lambda: with_map.run(None, {"input": x, **chosen})

    return sides


def torch_sides(
    name: str, model: onnx.ModelProto, threads: int
) -> Callable[[Any], dict[str, Callable[[], Any]]] | None:
    """PyTorch's plain forward pass and its tools, for a batch; `None` if one of them is not installed."""
    try:
        import torch  # noqa: PLC0415 - optional, and slow to import
        from captum.attr import LayerGradCam  # noqa: PLC0415

        network = torch_network(name, model)
        from pytorch_grad_cam import GradCAM  # noqa: PLC0415 - needs an importable torchvision
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415
    except ImportError as exc:
        print(f"PyTorch's tools are skipped: {exc}", file=sys.stderr)
        return None
    torch.set_num_threads(threads)
    layer = network.get_submodule(TORCH_LAYERS[name])

    def sides(x: npt.NDArray[np.float32]) -> dict[str, Callable[[], Any]]:
        image = torch.from_numpy(x)

        def plain() -> Any:
            with torch.inference_mode():
                return network(image)

        def grad_cam() -> Any:
            # The tool's hooks stay in the network until it exits, and would slow captum down.
            with GradCAM(network, [layer]) as tool:
                return tool(image, [ClassifierOutputTarget(CLASS)] * len(image))

        captum = LayerGradCam(network, layer)
        return {
            "plain": plain,
            "pytorch-grad-cam": grad_cam,
            "captum": lambda: captum.attribute(image, CLASS).detach().numpy()[:, 0],
        }

    return sides


def measure(name: str, options: argparse.Namespace) -> Iterator[list[object]]:
    """One row per batch size."""
    model = build(name, size=options.size)
    explained = attach(model)
    ours, theirs = explained_sides(model, explained, options.threads), None
    if not options.no_torch and (name != "vgg16" or options.size == 224):
        theirs = torch_sides(name, model, options.threads)
    for batch in options.batches:
        print(f"{name}, batch {batch} ...", file=sys.stderr)
        x = photo_like(batch, options.size)
        plain, with_map = ours(x)
        (ratio,) = alternate(plain, with_map, runs=options.runs)
        row: list[object] = [name, batch, explained.metadata.weights, ratio, f"{ratio.floor:.3f}", BARS[name]]
        if theirs is None:
            yield [*row, "", "", ""]
            continue
        rivals = theirs(x)
        grad_cam, captum = alternate(*rivals.values(), runs=max(3, options.runs // 8), warmup=1)
        cam = explained_cam(explained, with_map())
        difference = float(np.abs(cam - rivals["captum"]()).max() / np.abs(cam).max())
        yield [*row, short(grad_cam), short(captum), f"{difference:.0e}"]


def explained_cam(explained: Explained, outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The output that is the raw map."""
    names = [o.name for o in explained.to_proto().graph.output]
    return outputs[names.index(explained.metadata.cam)]


def short(ratio: Ratio) -> str:
    """A ratio without its quartiles."""
    return f"{ratio.median:.2f}"


def attach_seconds(folder: Path, size: int) -> tuple[float, float]:
    """The shortest time to attach heatmaps to a ResNet-50 file, and to attach and save."""
    path = folder / "resnet50.onnx"
    onnx.save(build("resnet50", size=size), path)
    alone, saved = [], []
    for _ in range(5):
        start = time.perf_counter()
        explained = attach(path)
        alone.append(time.perf_counter() - start)
        explained.save(folder / "explained.onnx")
        saved.append(time.perf_counter() - start)
    return min(alone), min(saved)


def help_seconds() -> float | None:
    """The shortest time of `onnx-gradcam --help` as a process; `None` if it is not installed."""
    command = shutil.which("onnx-gradcam", path=str(Path(sys.executable).parent)) or shutil.which("onnx-gradcam")
    if command is None:
        return None
    times = []
    for _ in range(7):
        start = time.perf_counter()
        done = subprocess.run([command, "--help"], capture_output=True, check=False)  # noqa: S603 - our own command
        times.append(time.perf_counter() - start)
        if done.returncode:
            return None
    return min(times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of an explanation.")
    parser.add_argument("--networks", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runs", type=int, default=40, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--no-torch", action="store_true", help="skip PyTorch's tools")
    parser.add_argument("--quick", action="store_true", help="small, to check that everything runs")
    options = parser.parse_args(argv)
    if options.quick:
        options.networks, options.batches, options.runs, options.size = ["squeezenet1_1"], [1, 2], 3, 64
    packages = ("onnxruntime-gpu", "onnxruntime", "torch", "torchvision", "grad-cam", "captum")
    conditions = f"{options.threads} threads, {options.runs} pairs of runs, {options.size}x{options.size}"
    print(f"{machine(*packages)}; {conditions}\n")
    header = ["network", "batch", "weights", "explained / plain", "fastest / fastest", "bar"]
    header += ["pytorch-grad-cam / plain torch", "captum / plain torch", "cam's difference from captum's"]
    print(table(header, []))
    for name in options.networks:
        for row in measure(name, options):
            print(line(row), flush=True)
    print()
    with tempfile.TemporaryDirectory() as folder:
        alone, saved = attach_seconds(Path(folder), options.size)
    seconds = help_seconds()
    rows = [
        ["attach ResNet-50 from a file", f"{alone:.2f} s", "1 s"],
        ["attach and save", f"{saved:.2f} s", ""],
        ["`onnx-gradcam --help`", "not installed" if seconds is None else f"{seconds:.2f} s", "0.3 s"],
    ]
    print(table(["step", "fastest", "bar"], rows))


if __name__ == "__main__":
    main()
