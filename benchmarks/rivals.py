"""Methods that run a model many times, beside captum's and pytorch-grad-cam's, on the same weights.

    python benchmarks/rivals.py                            # MobileNetV2 and ResNet-50, about ten minutes
    python benchmarks/rivals.py --networks mobilenet_v2 --methods integrated-gradients
    python benchmarks/rivals.py --quick                    # small, to check that it runs

Needs PyTorch with torchvision, captum and grad-cam. Both sides explain one class of one image with the same number of
runs and alternate in one process; a figure is the median of the ratios of neighbouring runs, rival by this package, so
2 means twice as fast. Each rival has the batch size that is fastest for it. `rows` are those of this package's model,
and its time is also given in plain forward passes of one row. Prints markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from latency import session
from measure import PAUSE, alternate, line, machine, table
from networks import NETWORKS, TORCH_LAYERS, build, photo_like, torch_network

from onnx_gradcam import Explainer

CLASS = 7
BATCHES = (1, 4, 16, 64)
"""The batch sizes that a rival is tried with."""
BARS = {"integrated-gradients": 2.0, "smoothgrad": 2.0, "scorecam": 8.0}
STEPS = 50


def rivals(method: str, network: Any, layer: Any, image: Any) -> dict[str, Callable[[int], Any]]:
    """What the other packages run, by their names, for a batch size."""
    if method == "scorecam":
        from pytorch_grad_cam import ScoreCAM  # noqa: PLC0415 - optional
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415 - as above

        cam = ScoreCAM(network, [layer])

        def scorecam(batch: int) -> Any:
            cam.batch_size = batch
            return cam(image, [ClassifierOutputTarget(CLASS)])

        return {"pytorch-grad-cam": scorecam}
    from captum.attr import IntegratedGradients, NoiseTunnel, Saliency  # noqa: PLC0415 - optional

    if method == "smoothgrad":
        tunnel = NoiseTunnel(Saliency(network))
        return {
            "captum": lambda batch: tunnel.attribute(
                image, nt_samples=STEPS, nt_samples_batch_size=batch, stdevs=0.15, target=CLASS
            )
        }
    integrated = IntegratedGradients(network)
    return {"captum": lambda batch: integrated.attribute(image, target=CLASS, n_steps=STEPS, internal_batch_size=batch)}


def fastest(call: Callable[[int], Any]) -> int:
    """The batch size with which a rival is fastest."""
    took = {}
    for batch in BATCHES:
        call(batch)
        time.sleep(PAUSE)
        start = time.perf_counter()
        call(batch)
        took[batch] = time.perf_counter() - start
    return min(took, key=took.__getitem__)


def compared(name: str, method: str, options: argparse.Namespace) -> list[list[object]]:
    """One row for each rival."""
    import torch  # noqa: PLC0415 - optional, and slow to import

    torch.set_num_threads(options.threads)
    size = 64 if options.quick else 224
    model, x = build(name, size=size), photo_like(1, size)
    network = torch_network(name, model)
    image, layer = torch.from_numpy(x), network.get_submodule(TORCH_LAYERS[name])
    explainer = Explainer(model, method=method, preprocess="none", threads=options.threads)
    plain = session(model, options.threads)
    rows = []
    for rival, call in rivals(method, network, layer, image).items():
        batch = fastest(call)
        forward, other = alternate(
            lambda: explainer.run(x, [CLASS]),
            lambda: plain.run(None, {"input": x}),
            lambda call=call, batch=batch: call(batch),
            runs=options.runs,
            warmup=1,
        )
        rows.append([name, method, f"{1 / forward.median:.0f}", rival, batch, other, BARS[method]])
    return rows


def rise(name: str, options: argparse.Namespace) -> list[object]:
    """The wall time of RISE, and in plain forward passes in batches of eight."""
    size = 64 if options.quick else 224
    model, x = build(name, size=size), photo_like(1, size)
    explainer = Explainer(model, method="rise", preprocess="none", threads=options.threads)
    plain, eight = session(model, options.threads), np.repeat(x, 8, 0)
    start = time.perf_counter()
    explainer.run(x, [CLASS])
    took = time.perf_counter() - start
    row: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        plain.run(None, {"input": eight})
        row.append((time.perf_counter() - start) / 8)
    return [name, f"{took:.1f} s", f"{took / statistics.median(row):.0f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Methods that run a model many times, beside other packages.")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--methods", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small, to check that it runs")
    options = parser.parse_args(arguments)
    print(f"{machine('torch', 'captum', 'grad-cam', 'onnxruntime')}; {options.threads} threads\n")
    print(table(["network", "method", "plain passes", "rival", "its batch", "rival / this package", "bar"], []))
    for name in options.networks:
        for method in options.methods:
            for row in compared(name, method, options):
                print(line(row), flush=True)
    print("\n" + table(["network", "RISE, 4000 masks", "in plain passes of a row in a batch of 8"], []))
    for name in options.networks:
        print(line(rise(name, options)), flush=True)


if __name__ == "__main__":
    main()
