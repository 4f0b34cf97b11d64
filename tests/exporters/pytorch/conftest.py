"""PyTorch for these tests, on one thread."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def torch():
    """PyTorch, on one thread."""
    package = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="PyTorch's exporter needs onnxscript")
    threads = package.get_num_threads()
    package.set_num_threads(1)
    yield package
    package.set_num_threads(threads)
