"""Run the pages of the documentation as a reader would, in an empty folder.

    python tests/examples/pages.py

updates the images on the pages of `docs/examples`. A page is Markdown with these kinds of fenced blocks:

- no language: commands, one per line;
- `python`: code that runs in one namespace per page; `python alone`: code that runs without this package;
- `text`: the output of the previous block. A line `...` stands for any lines; numbers must agree within 5 % or 0.02;
- `json`: one JSON document, which is parsed;
- `python original`: creates the page's model file with the framework; without it, a stand-in is used;
- `bash yours`, `python yours`, `javascript yours`, `text yours`, `toml yours`: takes what only the reader has (a
  framework, a server, a detector). Its commands are parsed, so that no option is invented, and its code is compiled.

Where a page names the reader's own files (`model.onnx`, `photo.jpg` ...), stand-ins are there.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import typer.main
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples import stand_ins

from onnx_gradcam import attach
from onnx_gradcam.cli import app

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.md"))
GENERATED = {"api.md", "cli.md", "operators.md"}
WRITTEN = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in GENERATED)]
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r"!\[[^\]]*\]\((\.\./images/[^)]+)\)")
FOREIGN = {"python original", "javascript yours", "text yours", "toml yours", "csharp yours", "java yours"}
CLONE = ("circle_and_star.png", "square_and_ring.png", "boxes.json", "shapes.txt", "shapes.json", "shapes.onnx")


@dataclass(frozen=True)
class Block:
    """A fenced block and the line where it starts."""

    kind: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [Block(m[2], textwrap.dedent(m[3]), text.count("\n", 0, m.start()) + 1) for m in BLOCK.finditer(text)]


def shown(page: Path) -> list[Path]:
    """The stored images on a page."""
    return [(page.parent / link).resolve() for link in IMAGE.findall(page.read_text(encoding="utf-8"))]


# ----- the files that the pages need -------------------------------------------


def furnish(folder: Path) -> None:
    """Fill the folder with the files of a clone that the pages use, and with stand-ins for the frameworks' models."""
    (folder / "models").mkdir()
    for name in CLONE:
        shutil.copy(ROOT / "models" / name, folder / "models" / name)
    here = Path(__file__).parent
    shutil.copy(here / "inceptionv3.keras", folder)
    with zipfile.ZipFile(here / "resnet50_v2.zip") as archive:
        archive.extractall(folder)
    stand_ins.vgg16(folder / "vgg16.keras")
    stand_ins.dogs_and_cats(folder / "dogs_and_cats.keras")
    stand_ins.pooled_logits(folder / "pooled_logits.onnx")


def furnish_reader(folder: Path) -> None:
    """Fill the folder with stand-ins for what a reader has: an ImageNet classifier, its names, and photographs."""
    (folder / "models").mkdir()
    for path in (ROOT / "models").glob("*.*"):
        shutil.copy(path, folder / "models" / path.name)
    stand_ins.imagenet(folder / "model.onnx", folder / "labels.txt")
    attach(folder / "model.onnx", labels=folder / "labels.txt", preprocess="torchvision").save(
        folder / "explained.onnx"
    )
    for name in ("float.onnx", "int8.onnx"):
        shutil.copy(folder / "model.onnx", folder / name)
    image = cv2.imread(str(ROOT / "models" / "circle_and_star.png"))
    (folder / "photos").mkdir()
    for path in (folder / "photo.jpg", folder / "photos" / "1.jpg", folder / "photos" / "2.jpg"):
        cv2.imwrite(str(path), image)


# ----- running a page ----------------------------------------------------------


def run_page(page: Path) -> None:
    """Run the blocks of a page in the current folder.

    Args:
        page: a page of `EXAMPLES` or `WRITTEN`.

    Raises:
        AssertionError: a command fails, or its output differs from the page.
    """
    names: dict[str, object] = {}
    printed = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.kind == "":
            printed = "".join(_command(line, where) for line in block.text.replace("\\\n", " ").splitlines())
        elif block.kind == "python":
            printed = _python(block.text, names, where)
        elif block.kind == "python alone":
            printed = _alone(block.text, where)
        elif block.kind == "text":
            _compare(block.text, printed, where)
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind == "bash yours":
            for line in block.text.replace("\\\n", " ").splitlines():
                _parse(line, where)
        elif block.kind == "python yours":
            compile(block.text, where, "exec")
        else:
            # A directive of the site has its name in braces.
            known = block.kind in FOREIGN or block.kind.startswith("{")
            assert known, f"{where}: unknown kind of block {block.kind!r}"


def make_originals(page: Path) -> None:
    """Create a page's original files, with random weights instead of trained ones."""
    for block in blocks(page):
        if block.kind == "python original":
            _python(block.text.replace('weights="imagenet"', "weights=None"), {}, f"{page.name}:{block.line}")


def _command(line: str, where: str) -> str:

    program, *arguments = shlex.split(line)
    assert program == "onnx-gradcam", f"{where}: {line}"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{where}: {line}\n{result.output}\n{result.exception!r}"
    return result.stdout + result.stderr


def _parse(line: str, where: str) -> None:
    """Parse a command line of this program as it would be called, without calling it; others are left alone."""
    if not line.startswith("onnx-gradcam "):
        return
    words = shlex.split(re.split(r" +(?:#|\||&&|>) ?", line)[0])
    command = typer.main.get_command(app)
    try:
        while hasattr(command, "commands"):
            words = words[1:]
            command = command.commands[words[0]]
        command.make_context(words[0], words[1:])
    except Exception as wrong:
        raise AssertionError(f"{where}: {line}\n{wrong!r}") from wrong


def _python(code: str, names: dict[str, object], where: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, where, "exec"), names)  # noqa: S102 - our own page
    return out.getvalue()


def _alone(code: str, where: str) -> str:
    refuse = "import sys; sys.modules['onnx_gradcam'] = None\n"
    done = subprocess.run([sys.executable, "-c", refuse + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}: {done.stderr}"
    return done.stdout


def _compare(expected: str, printed: str, where: str) -> None:
    lines = printed.splitlines()
    anywhere = False
    for line in expected.splitlines():
        if line.strip() == "...":
            anywhere = True
            continue
        at = next((i for i, other in enumerate(lines) if _alike(line, other)), None)
        matches = at == 0 or (anywhere and at is not None)
        assert matches, f"{where}: {line!r} is not the next line of the output:\n{printed}"
        lines, anywhere = lines[at + 1 :], False
    assert anywhere or not any(line.strip() for line in lines), f"{where}: the output continues: {lines}"


def _alike(line: str, other: str) -> bool:
    """Whether two lines have the same words and about the same numbers."""
    if NUMBER.sub("#", line).split() != NUMBER.sub("#", other).split():
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.05, abs_tol=0.02) for a, b in pairs)


def image_gap(stored: Path, made: Path) -> float:
    """Mean difference of two images' values, 0 to 255; infinite if their sizes differ."""
    a, b = (cv2.imread(str(path)).astype(np.float64) for path in (stored, made))
    return float(np.abs(a - b).mean()) if a.shape == b.shape else math.inf


def main() -> None:
    """Run all pages and update their images."""
    import os  # noqa: PLC0415 - only needed here
    import tempfile  # noqa: PLC0415

    for page in EXAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            furnish(Path(folder))
            os.chdir(folder)
            run_page(page)
            for image in shown(page):
                pixels = cv2.imread(str(Path(folder) / image.name))
                cv2.imwrite(str(image), pixels, [cv2.IMWRITE_JPEG_QUALITY, 75])
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
