"""Check explained models on a graphics card: numbers, operators left on the processor, time, memory, float16.

    python benchmarks/gpu.py                       # ONNX Runtime's CUDA provider, a few minutes
    python benchmarks/gpu.py --networks resnet50 --batches 1 32
    python benchmarks/gpu.py --provider cpu --quick  # without a card, to check that it runs

Each network is explained with `gradcam` and `gradient` in the profiles `portable` and `cuda`, and compared with ONNX
Runtime on the CPU: with TF32, which CUDA's provider uses unless it is told not to, without it, and in float16. Time is
that of the explained model divided by that of the original, both with inputs and outputs bound to the device, in strict
alternation. Memory is what `nvidia-smi` reports for the whole card. Prints markdown; the exit code is 1 if a map in
float32 is further than 1e-4 from the CPU's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from latency import CLASS
from measure import alternate, line, machine, table
from networks import NETWORKS, build, photo_like

from onnx_gradcam import attach

Array = npt.NDArray[Any]

BAR = 1e-4
"""The largest difference of a raw map in float32 from the CPU's, relative to its largest value."""
KINDS = ("float32", "TF32", "float16")
METHODS = ("gradcam", "gradient")
PROFILES = ("portable", "cuda")


@dataclass(frozen=True)
class Card:
    """The execution provider that is measured.

    Attributes:
        provider: ONNX Runtime's name for it.
        device: the device that inputs and outputs are bound to.
    """

    provider: str
    device: str

    def session(self, model: onnx.ModelProto, *, tf32: bool = False, profiled: str = "") -> ort.InferenceSession:
        """A session on this provider; `profiled` is the prefix of the profile that it writes."""
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if profiled:
            settings.enable_profiling, settings.profile_file_prefix = True, profiled
        own = {"use_tf32": int(tf32)} if self.device == "cuda" else {}
        providers = [(self.provider, own), "CPUExecutionProvider"][: 2 if self.device == "cuda" else 1]
        session = ort.InferenceSession(model.SerializeToString(), settings, providers=providers)
        if session.get_providers()[0] != self.provider:
            raise SystemExit(f"{self.provider} does not start here; see onnx-gradcam doctor")
        return session

    def bound(self, session: ort.InferenceSession, feeds: dict[str, Array]) -> Callable[[], None]:
        """A run whose inputs lie on the device already and whose outputs stay there."""
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, self.device, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, self.device, 0)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run


def explained(model: onnx.ModelProto, method: str, profile: str) -> onnx.ModelProto:
    """The explained model, whose class is chosen when it runs."""
    return attach(model, method=method, profile=profile).to_proto()


def feeds_of(batch: int, size: int, dtype: str = "float32") -> dict[str, Array]:
    """An image, and the class."""
    return {"input": photo_like(batch, size).astype(dtype), "target_class": np.array([CLASS], np.int64)}


def apart(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest value of `b`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def numbers(card: Card, name: str, size: int) -> Iterator[tuple[list[object], bool]]:
    """One row for each method and profile, and whether it meets the bar."""
    model = build(name, size=size)
    for method in METHODS:
        feeds = feeds_of(2, size)
        reference = Card("CPUExecutionProvider", "cpu").session(explained(model, method, "portable"))
        (want,) = reference.run(["cam"], feeds)
        for profile in PROFILES:
            proto = explained(model, method, profile)
            found = {
                "float32": apart(card.session(proto).run(["cam"], feeds)[0], want),
                "TF32": apart(card.session(proto, tf32=True).run(["cam"], feeds)[0], want),
            }
            half = explained(halved(model), method, profile)
            found["float16"] = apart(card.session(half).run(["cam"], feeds_of(2, size, "float16"))[0], want)
            left = on_the_processor(card, proto, feeds)
            right = found["float32"] <= BAR
            cells = [f"{found[kind]:.0e}" for kind in KINDS]
            yield [name, method, profile, *cells, ", ".join(f"{n} {c}" for n, c in left.items()) or "none"], right


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, by ONNX Runtime's converter."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - slow to import

    return convert_float_to_float16(model, keep_io_types=False)


def on_the_processor(card: Card, model: onnx.ModelProto, feeds: dict[str, Array]) -> Counter[str]:
    """The operators of a run that the provider left to another one."""
    with tempfile.TemporaryDirectory() as folder:
        session = card.session(model, profiled=str(Path(folder) / "run"))
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    ran = [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
    return Counter(args["op_name"] for args in ran if args["provider"] != card.provider)


def times(card: Card, name: str, batch: int, size: int, runs: int) -> list[object]:
    """The time of explained models in plain runs, and the memory of the card."""
    model = build(name, size=size)
    plain = card.session(model)
    before = memory()
    image = {"input": photo_like(batch, size)}
    runs_of = [card.bound(card.session(explained(model, m, "cuda")), feeds_of(batch, size)) for m in METHODS]
    ratios = alternate(card.bound(plain, image), *runs_of, runs=runs)
    after = memory()
    return [name, batch, *ratios, "" if before is None or after is None else f"{after - before} MiB"]


def memory() -> int | None:
    """Mebibytes of the first card that are in use; `None` without `nvidia-smi`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)  # noqa: S603 - a fixed command
    return int(done.stdout.splitlines()[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Check explained models on a graphics card.")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small, to check that it runs")
    options = parser.parse_args(arguments)
    size, networks = (64, options.networks[:1]) if options.quick else (224, options.networks)
    batches, runs = ([1], 2) if options.quick else (options.batches, options.runs)
    names = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
    card = Card(names[options.provider], options.provider)
    if card.provider not in ort.get_available_providers():
        raise SystemExit(f"this build of ONNX Runtime has no {card.provider}; see onnx-gradcam doctor")
    print(f"{machine()}; {card.provider}, {size}x{size}\n")
    header = ["network", "method", "profile", *KINDS, "operators on another provider"]
    print(table(header, []))
    rights = []
    for name in networks:
        for row, right in numbers(card, name, size):
            print(line(row), flush=True)
            rights.append(right)
    print("\n" + table(["network", "batch", *(f"{m} / plain" for m in METHODS), "memory"], []))
    for name in networks:
        for batch in batches:
            print(line(times(card, name, batch, size, runs)), flush=True)
    return 0 if all(rights) else 1


if __name__ == "__main__":
    sys.exit(main())
