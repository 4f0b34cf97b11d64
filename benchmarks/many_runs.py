"""Measure methods that run a model many times: rows of the model, rows of its head, and time per image.

Run by hand::

    python benchmarks/many_runs.py                          # MobileNetV2, a few minutes
    python benchmarks/many_runs.py --network squeezenet1_1 --methods scorecam rise
    python benchmarks/many_runs.py --quick                  # small, to check that it runs

Rows are counted as they are passed to ONNX Runtime. Time is the CPU time for the top-1 class of one image, without the
creation of sessions, and is also given in plain forward passes of one row. Prints markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from measure import line, machine, table
from networks import NETWORKS, build, photo_like

from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober
from onnx_gradcam.runtime.session import Session

OFTEN = [name for name, method in methods().items() if method.runs_often and not method.of_boxes]


class Counted(Prober):
    """A prober that counts the rows of the model and of its head."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rows: Counter[str] = Counter()

    def answers(self, rows: Any, *arguments: Any) -> Any:
        """See `Prober`."""
        self.rows["model"] += len(rows)
        return super().answers(rows, *arguments)

    def behind(self, maps: Any, *arguments: Any) -> Any:
        """See `Prober`."""
        self.rows["head"] += len(maps)
        return super().behind(maps, *arguments)


def seconds(call: Callable[[], object]) -> float:
    """The CPU time of a call; other work on the machine does not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="mobilenet_v2")
    parser.add_argument("--methods", nargs="+", choices=OFTEN, default=OFTEN)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    size, width = (64, 0.1) if options.quick else (224, 1.0)
    model, x = build(options.network, size=size, width=width), photo_like(1, size)
    plain = Session(model.SerializeToString(), threads=options.threads)
    forward = statistics.median(seconds(lambda: plain.run({plain.inputs[0].name: x})) for _ in range(20))
    print(machine("onnxruntime", "numpy"))
    print(f"\n{options.network}, {size}x{size}: one forward pass {1000 * forward:.1f} ms\n")
    print(table(["method", "rows of the model", "rows of the head", "CPU time", "in plain forward passes"], []))
    for name in options.methods:
        prober = Counted(probed(model, Options(method=name)), threads=options.threads, batch_size=options.batch_size)
        took = seconds(lambda prober=prober: prober.run(x, [-1]))  # type: ignore[misc]
        rows = prober.rows
        cells = [f"`{name}`", rows["model"], rows["head"] or "", f"{took:.1f} s", f"{took / forward:.0f}"]
        print(line(cells), flush=True)


if __name__ == "__main__":
    main()
