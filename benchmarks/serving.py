"""Measure the server's latency and throughput with the explained and with the plain model, for every transport.

    pip install '.[serve]' 'tritonclient[grpc]'
    python benchmarks/serving.py
    python benchmarks/serving.py --network resnet50 --seconds 10

The same server serves both models over the same transports (`serving_plain.py`), one at a time, in alternating rounds.
Latency is measured with one client, throughput with four. Prints markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import machine, table
from networks import build, photo_like
from serving_clients import (
    Served,
    ask_tensors,
    image_body,
    photograph,
    post,
    tensor_body,
    tensor_input,
)

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.runtime.session import Session

Ask = Callable[[], object]


def ways(served: Served, image: str, *, plain: bool) -> dict[str, Callable[[], Ask]]:
    """For each transport, a function that creates a client: a function that sends one request."""
    x = photo_like(1, 224)
    outputs = ["scores"] if plain else ["heatmap"]

    def over_grpc(batch: Any) -> Callable[[], Ask]:
        def client() -> Ask:
            connection = served.client()
            return lambda: ask_tensors(connection, [tensor_input(image, batch)], outputs)

        return client

    def over_rest(body: bytes) -> Callable[[], Ask]:
        def client() -> Ask:
            connection = served.connection()

            def ask() -> None:
                assert post(connection, body) == 200

            return ask

        return client

    photo = photograph()
    images = ["scores"] if plain else ["scores", "overlay_png"]
    return {
        "gRPC, tensor [1, 3, 224, 224]": over_grpc(x),
        "gRPC, tensor [8, 3, 224, 224]": over_grpc(np.repeat(x, 8, axis=0)),
        "REST, the same [1, ...] as JSON": over_rest(tensor_body(image, x, outputs)),
        "REST, JPEG in, scores (and overlay) out": over_rest(image_body(photo, target="top1", outputs=images)),
        "REST, JPEG in, scores (and heatmap as PNG) out": over_rest(
            image_body(photo, target="top1", outputs=["scores"] if plain else ["scores", "heatmap_png"])
        ),
    }


def latency(make: Callable[[], Ask], seconds: float) -> list[float]:
    """Milliseconds of each of several consecutive requests."""
    ask = make()
    for _ in range(3):
        ask()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - start))
    return times


def throughput(make: Callable[[], Ask], seconds: float, clients: int = 4) -> float:
    """Requests per second of several clients."""
    counts = [0] * clients
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        ask = make()
        while time.perf_counter() < end:
            ask()
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def in_process(model: Path, image: str, seconds: float) -> list[float]:
    """Milliseconds of the model without a server."""
    session, x = Session(model, threads=2), photo_like(1, 224)
    return latency(lambda: lambda: session.run({image: x}), seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        plain, explained = Path(folder) / "plain.onnx", Path(folder) / "explained.onnx"
        model = build(options.network, size=224)
        onnx.save(model, plain)
        made = attach(model, preprocess={"size": [224, 224], "scale": 1 / 255})
        made.save(explained)
        image = made.metadata.image_input
        times: dict[str, tuple[list[float], list[float]]] = {}
        rates: dict[str, tuple[list[float], list[float]]] = {}
        for _ in range(options.rounds):
            for side, file in enumerate((plain, explained)):
                times.setdefault("in process", ([], []))[side].extend(in_process(file, image, options.seconds))
                with Served(explained, "--threads=2", plain=side == 0) as served:
                    for name, make in ways(served, image, plain=side == 0).items():
                        times.setdefault(name, ([], []))[side].extend(latency(make, options.seconds))
                        rates.setdefault(name, ([], []))[side].append(throughput(make, options.seconds))
    print(f"{options.network}, {machine('starlette', 'uvicorn', 'onnxruntime-gpu', 'onnxruntime', 'grpcio')}\n")
    print(
        table(
            ["transport", "plain, ms", "explained, ms", "plain, requests/s", "explained, requests/s"],
            rows(times, rates),
        )
    )


def rows(times: dict[str, Any], rates: dict[str, Any]) -> list[list[str]]:
    """Medians, and the 99th percentile of the latencies."""

    def both(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} (p99 {np.quantile(values, 0.99):.1f})"

    return [
        [name, both(plain), both(explained), *(f"{statistics.median(rate):.0f}" for rate in rates.get(name, ()))]
        if name in rates
        else [name, both(plain), both(explained), "", ""]
        for name, (plain, explained) in times.items()
    ]


if __name__ == "__main__":
    main()
