"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_gradcam.autodiff.providers.profiles import PROFILES
from onnx_gradcam.autodiff.registry import RULES, rules
from onnx_gradcam.editor.methods.catalogue import METHODS, methods
from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.editor.targets.task import TASKS

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real trained models and photographs, which lies beside the project where it is at hand."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip("the folder of real models and photographs is not beside the project")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    """A test that adds an entry to a registry takes it out again; the tests after it would see the entry."""
    # Both are filled at their first use.
    methods()
    rules()
    registries = (METHODS, PRESETS, PROFILES, RULES, TASKS)
    before = [dict(registry) for registry in registries]
    yield
    assert [dict(registry) for registry in registries] == before
