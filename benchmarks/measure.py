"""Shared by the benchmarks: alternating timings, Markdown tables and the description of the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

__all__ = ["Ratio", "alternate", "line", "machine", "table"]


PAUSE = 0.05
"""Seconds before each run: threads of another session spin for a while after it, and take time from the next."""


@dataclass(frozen=True)
class Ratio:
    """The time of a candidate divided by the time of the reference, from alternating runs.

    Attributes:
        median: median of the ratios of neighboring runs.
        quartiles: lower and upper quartile, a measure of the noise.
        floor: shortest run of the candidate divided by the shortest run of the reference: the ratio without noise.
        runs: number of pairs.
    """

    median: float
    quartiles: tuple[float, float]
    floor: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.quartiles[0]:.3f} to {self.quartiles[1]:.3f})"


def alternate(
    reference: Callable[[], object], *candidates: Callable[[], object], runs: int, warmup: int = 2
) -> list[Ratio]:
    """Time `reference` and each candidate in strict alternation.

    Every second round runs backwards, so that no side always follows the same one and drifts of the machine's speed
    cancel.

    Args:
        reference: the call that the candidates are compared with.
        candidates: the calls to measure.
        runs: number of rounds; each runs every side once.
        warmup: number of earlier rounds that do not count.

    Returns:
        One ratio per candidate.
    """
    sides = [reference, *candidates]
    times = np.zeros((runs, len(sides)))
    for turn in range(-warmup, runs):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            time.sleep(PAUSE)
            start = time.perf_counter()
            sides[side]()
            elapsed = time.perf_counter() - start
            if turn >= 0:
                times[turn, side] = elapsed
    results = []
    for side in range(1, len(sides)):
        ratios = times[:, side] / times[:, 0]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        floor = times[:, side].min() / times[:, 0].min()
        results.append(Ratio(float(middle), (float(low), float(high)), float(floor), runs))
    return results


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    return "\n".join(line(cells) for cells in (header, ["---"] * len(header), *rows))


def line(cells: Sequence[object]) -> str:
    """One line of a markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def machine(*packages: str) -> str:
    """The CPU, its cores, and the versions of the given packages, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    parts = [f"{os.cpu_count()} cores ({processor})", platform.system(), f"Python {platform.python_version()}"]
    installed = {d.name: d.version for d in distributions() if d.name in packages}
    parts += [f"{package} {installed[package]}" for package in packages if package in installed]
    return ", ".join(parts)
