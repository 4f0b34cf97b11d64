"""Check that a server's memory does not grow during minutes of valid and malformed requests.

    pip install '.[serve]' 'tritonclient[grpc]'
    python benchmarks/soak.py models/shapes.onnx --minutes 10

Prints the resident memory every half minute, and fails if it ends more than 2 % higher in the second half of the time
than in the first.
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

GROWTH = 0.02


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
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args(argv)
    counts = {"tensors": 0, "images": 0, "malformed": 0}
    with Served(arguments.model, "--threads=1") as served:
        stop = threading.Event()
        clients = [
            threading.Thread(target=work, args=(served, stop, counts, seed), daemon=True)
            for seed in range(arguments.clients)
        ]
        for client in clients:
            client.start()
        memory = watch(served, arguments.minutes * 60, clients)
        stop.set()
        for client in clients:
            client.join(60)
    half = len(memory) // 2
    first, second = statistics.median(memory[half // 2 : half]), statistics.median(memory[half + half // 2 :])
    print(f"{sum(counts.values())} requests {counts}; {first:.0f} MB, then {second:.0f} MB ({second / first - 1:+.1%})")
    if second > first * (1 + GROWTH):
        sys.exit(f"memory grew by more than {GROWTH:.0%}")


def watch(served: Served, seconds: float, clients: list[threading.Thread]) -> list[float]:
    """The server's memory, once per second."""
    memory: list[float] = []
    start = time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        time.sleep(1)
        memory.append(served.megabytes())
        if not all(client.is_alive() for client in clients):
            sys.exit("a client failed")
        if len(memory) % 30 == 0:
            print(f"{passed:5.0f} s  {memory[-1]:6.0f} MB", flush=True)
    return memory


if __name__ == "__main__":
    main()
