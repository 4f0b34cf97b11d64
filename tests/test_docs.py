"""Generated pages are up to date, and the links of all pages resolve."""

from __future__ import annotations

import importlib.util
import inspect
import re

import onnx
import pytest

import onnx_gradcam
from onnx_gradcam.editor.methods.catalogue import methods


@pytest.fixture(scope="module")
def generator(repository):
    spec = importlib.util.spec_from_file_location("generate_docs", repository / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["operators.md", "methods.md", "presets.md", "engines.md", "preprocessing.md"])
def test_generated_pages_are_current(generator, repository, name):
    page = (repository / "docs" / name).read_text(encoding="utf-8")
    version = re.search(r"schemas of onnx ([\d.]+);", page)
    if version and version.group(1) != onnx.__version__:
        pytest.skip(f"the page was written for onnx {version.group(1)}, installed is {onnx.__version__}")
    assert page == generator.PAGES[name](), "run `python docs/generate.py`"


PUBLIC = sorted(set(onnx_gradcam.__all__) - {"__version__"})


def test_every_public_name_is_in_the_reference(repository):
    page = (repository / "docs" / "api.md").read_text(encoding="utf-8")
    ours = page.split(".. currentmodule:: onnx_gradcam.errors")[0]
    assert sorted(re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", ours, re.MULTILINE)) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_docstring_says_what_a_caller_needs(name):
    value = getattr(onnx_gradcam, name)
    text = inspect.getdoc(value)
    assert "Example::" in text
    signature = inspect.signature(value)
    if inspect.isfunction(value) and signature.parameters:
        for section in ("Args:", "Returns:", "Raises:"):
            assert section in text, section
    described = {*re.findall(r"^    (\w+): ", text, re.MULTILINE)}
    assert not {n for n in signature.parameters if n not in described} or name == "ExplainError"


def test_the_readme_counts_the_methods(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert f"[{len(methods())} methods](docs/methods.md)" in text


def test_links_resolve(repository):
    pages = [repository / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
        (repository / "docs").rglob("*.md")
    )
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not broken
