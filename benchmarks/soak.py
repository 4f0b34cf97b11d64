"""Check that a server loses none of thousands of valid and malformed requests, and that its memory does not grow.

    pip install '.[serve]' 'tritonclient[grpc]'
    python benchmarks/soak.py models/shapes.onnx
    python benchmarks/soak.py models/shapes.onnx --requests 100000 --clients 8

Prints the resident memory every half minute. Fails if a request gets no answer or another one than it should, or if the
memory after the first thousand requests grows by more than 5 %: the median of its last fifth beside that of its first.
Single seconds say nothing, as photographs of 1600 pixels square come and go.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from serving_clients import (
    MODEL,
    Served,
    ask_tensors,
    image_body,
    photograph,
    post,
    tensor_input,
)
from tritonclient.utils import InferenceServerException

GROWTH = 0.05
WARM = 1000
"""Requests before the memory counts: caches and arenas grow to their size."""
KINDS = ("tensors", "images", "malformed")


def work(served: Served, stop: threading.Event, counts: dict[str, int], seed: int) -> None:
    """One client: tensors of varying batch size over gRPC, images over REST, and every tenth request malformed."""
    rng = np.random.default_rng(seed)
    client, connection = served.client(), served.connection()
    described = client.get_model_metadata(MODEL, as_json=True)["inputs"][0]
    shape = [int(size) for size in described["shape"][1:]]
    bodies = [
        image_body(photograph(side), target="top3", outputs=["overlay_png", "heatmap"]) for side in (200, 640, 1600)
    ]
    for number in itertools.count():
        if stop.is_set():
            return
        if number % 10 == 9:
            assert 400 <= post(connection, b'{"inputs": [' + b"1," * 1000 + b"1]}") < 500
            counts["malformed"] += 1
        elif number % 5 == 4:
            assert post(connection, bodies[number % 3]) == 200
            counts["images"] += 1
        else:
            batch = rng.standard_normal((int(rng.integers(1, 9)), *shape), np.float32)
            try:
                ask_tensors(client, [tensor_input(described["name"], batch)], ["heatmap"])
            except InferenceServerException as error:
                raise AssertionError(f"a valid request was refused: {error}") from error
            counts["tensors"] += 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the clients and watch the server's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args(argv)
    counts = dict.fromkeys(KINDS, 0)
    with Served(options.model, "--threads=1") as served:
        stop = threading.Event()
        clients = [
            threading.Thread(target=work, args=(served, stop, counts, seed), daemon=True)
            for seed in range(options.clients)
        ]
        for client in clients:
            client.start()
        memory = watch(served, options.requests, counts, clients)
        stop.set()
        for client in clients:
            client.join(60)
    fifth = max(1, len(memory) // 5)
    first, last = statistics.median(memory[:fifth]), statistics.median(memory[-fifth:])
    print(
        f"{sum(counts.values())} requests {counts}, none lost; {first:.0f} MB after the first {WARM}, "
        f"{last:.0f} MB at the end ({last / first - 1:+.1%}), {min(memory):.0f} to {max(memory):.0f} MB in between"
    )
    if last > first * (1 + GROWTH):
        sys.exit(f"memory grew by more than {GROWTH:.0%}")


def watch(served: Served, requests: int, counts: dict[str, int], clients: list[threading.Thread]) -> list[float]:
    """The server's memory, once per second, after the first `WARM` requests."""
    memory: list[float] = []
    start = time.monotonic()
    for second in itertools.count(1):
        time.sleep(max(0.0, start + second - time.monotonic()))
        if not all(client.is_alive() for client in clients):
            sys.exit("a client failed")
        if (done := sum(counts.values())) >= WARM:
            memory.append(served.megabytes())
        if second % 30 == 0:
            print(f"{second:5d} s  {done:7d} requests  {served.megabytes():6.0f} MB", flush=True)
        if memory and done >= requests:
            return memory
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main()
