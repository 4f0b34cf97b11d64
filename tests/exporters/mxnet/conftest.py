"""MXNet networks as files, and the stored results of MXNet."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_gradcam.runtime.session import Session

ORACLES = Path(__file__).resolve().parents[2] / "oracles" / "mxnet" / "operators.json"


def decoded(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["float32"]), "<f4").reshape(entry["shape"])


@functools.cache
def oracles() -> dict[str, Any]:
    return json.loads(ORACLES.read_text("utf-8"))


class Case:
    """A stored network, the two files that MXNet would write, its input and what MXNet made of it."""

    def __init__(self, name: str) -> None:
        stored = oracles()["cases"][name]
        self.symbol = json.loads(json.dumps(stored["symbol"]))
        self.params = base64.b64decode(stored["params"])
        self.x = decoded(oracles()["inputs"][stored["input"]])
        self.outputs = {n.removesuffix("_output"): decoded(v) for n, v in stored["outputs"].items()}

    def node(self, name: str = "y") -> dict[str, Any]:
        return next(n for n in self.symbol["nodes"] if n["name"] == name)

    def write(self, folder: Path) -> tuple[Path, Path]:
        symbol, params = folder / "net-symbol.json", folder / "net-0000.params"
        symbol.write_text(json.dumps(self.symbol), encoding="utf-8")
        params.write_bytes(self.params)
        return symbol, params

    def check(self, model: Any) -> None:
        """The exported model gives what MXNet gave."""
        got = Session(model.to_proto().SerializeToString()).run({"data": self.x})
        assert set(got) == set(self.outputs)
        for name, want in self.outputs.items():
            assert got[name].shape == want.shape
            np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-5 * max(np.abs(want).max(), 1e-3))


@pytest.fixture
def case():
    """Stored networks by name."""
    return Case
