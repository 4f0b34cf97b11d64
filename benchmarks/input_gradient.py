"""Measure the cost of the gradient by the image: forward and reverse pass of one logit against the forward pass alone.

Run by hand::

    python benchmarks/input_gradient.py                     # everything, a few minutes
    python benchmarks/input_gradient.py --networks vgg16 --runs 60
    python benchmarks/input_gradient.py --operators         # also the time of each operator
    python benchmarks/input_gradient.py --quick             # small, to check that it runs

All sides alternate in one process. A figure is the median of the ratios of neighbouring runs, with their quartiles.
`portable` and `cpu` are profiles of this package. If the package `onnx-ad` is installed, its reverse model runs on the
same seed, for a batch of one with all shapes fixed, as it needs them. PyTorch's autograd is compared with PyTorch's own
forward pass under `inference_mode`, on the same weights. Every gradient is compared with the portable one. Prints
markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from latency import CLASS, session
from measure import alternate, line, machine, table
from networks import CLASSES, build, photo_like, torch_network

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.providers import find_profile
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

ARCHITECTURES = ("resnet50", "vgg16", "mobilenet_v2", "vit_small")
BAR = 2.5
SIDES = ("portable", "cpu")
"""The profiles for ONNX Runtime on the CPU."""
Array = npt.NDArray[Any]


def gradient_model(model: onnx.ModelProto, profile: str) -> onnx.ModelProto:
    """The model with the input's gradient as its last output; `seed` is the cotangent of the logits."""
    t = Builder(load(model))
    x, logits = t.wrap(t.graph.inputs[0]), t.wrap(t.graph.outputs[0])
    seed = t.input("seed", np.float32, logits.shape)
    (gradient,) = backward(t, {logits: seed}, [x], find_profile(profile).rules())
    t.output(gradient, "gradient")
    t.finish()
    return t.model.to_proto()


def onnx_ad_side(model: onnx.ModelProto, x: Array, seed: Array, threads: int) -> Callable[[], Array] | str:
    """The reverse model of `onnx-ad`, or the reason why there is none."""
    try:
        import onnx_ad  # noqa: PLC0415 - optional
    except ImportError:
        return "not installed"
    feeds = {"input": x, "adj_logits": seed[..., None]}
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in (*fixed.graph.input, *fixed.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = len(x)
    fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    try:
        reverse = session(onnx_ad.reverse(fixed, layout="onnx"), threads)
        reverse.run(None, feeds)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is the finding
        print(f"onnx-ad: {exc}", file=sys.stderr)
        return "fails"
    return lambda: np.asarray(reverse.run(None, feeds)[-1])[..., 0]


def torch_sides(
    name: str, model: onnx.ModelProto, x: Array, threads: int
) -> tuple[Callable[[], Any], Callable[[], Array]] | None:
    """PyTorch's plain forward and its gradient; `None` where it is not installed."""
    try:
        import torch  # noqa: PLC0415 - optional, and slow to import

        network = torch_network(name, model)
    except ImportError as exc:
        print(f"PyTorch is skipped: {exc}", file=sys.stderr)
        return None
    torch.set_num_threads(threads)
    network.requires_grad_(requires_grad=False)
    image = torch.from_numpy(x)

    def plain() -> Any:
        with torch.inference_mode():
            return network(image)

    def gradient() -> Array:
        leaf = image.detach().clone().requires_grad_()
        (cotangent,) = torch.autograd.grad(network(leaf)[0, CLASS], leaf)
        return np.asarray(cotangent)

    return plain, gradient


def measure(name: str, options: argparse.Namespace) -> Iterator[list[object]]:
    """One row for each side."""
    model = build(name, size=options.size)
    x, seed = photo_like(1, options.size), np.zeros((1, CLASSES), np.float32)
    seed[0, CLASS] = 1
    plain = session(model, options.threads)
    feeds = {"input": x, "seed": seed}
    sides: dict[str, Callable[[], Array]] = {}
    for profile in SIDES:
        run = session(gradient_model(model, profile), options.threads)
        sides[profile] = lambda run=run: np.asarray(run.run(None, feeds)[-1])
    portable = sides["portable"]()
    ratios = alternate(lambda: plain.run(None, {"input": x}), *sides.values(), runs=options.runs)
    for (side, gradient), ratio in zip(sides.items(), ratios, strict=True):
        bar = BAR if side == "cpu" else ""
        yield [name, side, ratio, f"{ratio.floor:.2f}", bar, difference(gradient(), portable)]
    rival = onnx_ad_side(model, x, seed, options.threads)
    if isinstance(rival, str):
        yield [name, "onnx-ad", rival, "", "", ""]
    else:  # apart from the others and fewer runs: it can take a hundred times as long
        (ratio,) = alternate(lambda: plain.run(None, {"input": x}), rival, runs=max(3, options.runs // 10), warmup=0)
        yield [name, "onnx-ad", ratio, f"{ratio.floor:.2f}", "", difference(rival(), portable)]
    torch = None if options.no_torch else torch_sides(name, model, x, options.threads)
    if torch is not None:
        (ratio,) = alternate(*torch, runs=options.runs)
        yield [
            name,
            "PyTorch autograd / plain PyTorch",
            ratio,
            f"{ratio.floor:.2f}",
            "",
            difference(torch[1](), portable),
        ]


def difference(gradient: Array, expected: Array) -> str:
    """The largest difference, relative to the largest value."""
    return f"{float(np.abs(gradient - expected).max() / np.abs(expected).max()):.0e}"


def operators(name: str, profile: str, options: argparse.Namespace) -> list[object]:
    """Milliseconds a run by operator, forward and backward; those above one per cent."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.enable_profiling = options.threads, True
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = f"{folder}/run"
        model = gradient_model(build(name, size=options.size), profile).SerializeToString()
        run = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        feeds = {"input": photo_like(1, options.size), "seed": np.ones((1, CLASSES), np.float32)}
        for _ in range(options.runs):
            run.run(None, feeds)
        events = json.loads(Path(run.end_profiling()).read_text())
    spent: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            part = "backward" if "onnx_gradcam" in event["name"] else "forward"
            spent[event["args"]["op_name"], part] += event["dur"] / options.runs / 1000
    total = sum(spent.values())
    shown = [f"{op} ({part}) {ms:.1f}" for (op, part), ms in spent.most_common() if ms > total / 100]
    return [name, profile, f"{total:.1f} ms", ", ".join(shown)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of the gradient by the image.")
    parser.add_argument("--networks", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--runs", type=int, default=30, help="number of rounds; each runs every side once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image in pixels")
    parser.add_argument("--no-torch", action="store_true", help="skip PyTorch")
    parser.add_argument("--operators", action="store_true", help="also print the time of each operator")
    parser.add_argument("--quick", action="store_true", help="small, to check that everything runs")
    options = parser.parse_args(argv)
    if options.quick:
        options.networks, options.runs, options.size = ["mobilenet_v2"], 3, 64
    packages = ("onnxruntime-gpu", "onnxruntime", "torch", "torchvision", "onnx-ad")
    conditions = f"{options.threads} threads, {options.runs} rounds, batch 1, {options.size}x{options.size}"
    print(f"{machine(*packages)}; {conditions}\n")
    print(table(["network", "gradient by", "gradient / plain", "fastest / fastest", "bar", "difference"], []))
    for name in options.networks:
        print(f"{name} ...", file=sys.stderr)
        for row in measure(name, options):
            print(line(row), flush=True)
    if options.operators:
        print()
        print(table(["network", "profile", "total", "milliseconds by operator"], []))
        for name in options.networks:
            for profile in SIDES:
                print(line(operators(name, profile, options)), flush=True)


if __name__ == "__main__":
    main()
