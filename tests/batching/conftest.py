"""A model and images, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.batch_runs import classifier, draw


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[str]:
    return draw(tmp_path_factory.mktemp("images"), 40)
