"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

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
