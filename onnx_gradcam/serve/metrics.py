"""Prometheus metrics of explanations.

They are in the registry that MLServer's /metrics shows, that of `prometheus_client` itself; what
`mlserver.register` makes is in another one, which is not shown unless MLServer runs parallel workers.
Made when a model is loaded, not at import: MLServer's workers switch `prometheus_client` to files before that.
"""

from __future__ import annotations

import functools
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["Metrics", "metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics; one instance a process, of `metrics`."""

    def __init__(self) -> None:
        self.explanations: Any = Counter("onnx_gradcam_explanations", "Heatmaps made.", ["model", "kind"])
        self.refused: Any = Counter("onnx_gradcam_refused", "Requests refused, by HTTP status.", ["model", "status"])
        self.seconds: Any = Histogram(
            "onnx_gradcam_request_seconds", "From a request's arrival to its answer.", ["model"], buckets=_SECONDS
        )
        self.batch_rows: Any = Histogram("onnx_gradcam_batch_rows", "Rows that ran together.", ["model"], buckets=_ROWS)
        self.pending: Any = Gauge(
            "onnx_gradcam_pending", "Requests that are being served.", ["model"], multiprocess_mode="livesum"
        )


@functools.cache
def metrics() -> Metrics:
    """The process's metrics."""
    return Metrics()
