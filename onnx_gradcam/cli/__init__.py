"""The command line: one file a command, which parses, calls one function and prints.

Importing this package loads nothing heavy, so that `--help` answers at once: a command imports what it works with
when it runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from onnx_gradcam import __version__

from .attach import attach
from .batch import batch
from .compare import compare
from .doctor import doctor
from .evaluate import evaluate
from .explain import explain
from .export import export
from .group import Commands
from .inspect import inspect
from .kserve import kserve
from .methods import methods
from .ops import ops
from .output import complain, say
from .serve import serve
from .triton import triton
from .verify import verify
from .web import web

__all__ = ["app", "main"]

_DEBUG = "ONNX_GRADCAM_DEBUG"

app = typer.Typer(
    name="onnx-gradcam",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: it reads the same in a terminal, a pipe and the documentation.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_COMMANDS: dict[Callable[..., None], str] = {
    explain: "Images that show what a classifier looks at.",
    attach: "A model that gives its heatmap itself.",
    inspect: "What of a model would be explained, and why.",
    compare: "Whether models agree, and for the same reason.",
    batch: "Millions of images, in shards, on this computer or a cluster.",
    evaluate: "How faithful methods are, and whether they point at the objects.",
    serve: "A model and its heatmaps on a server, over REST and gRPC.",
    triton: "A model repository for Triton.",
    kserve: "A manifest for KServe.",
    web: "A web page that explains images in the browser.",
    verify: "The gradient of an explanation, checked by small changes.",
    methods: "The methods there are.",
    ops: "The operators a gradient can cross.",
    doctor: "Versions, execution providers, what is missing.",
}
for _command, _summary in _COMMANDS.items():
    app.command(short_help=_summary)(_command)
app.add_typer(export, short_help="A framework's model as ONNX, its layers by their names.")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - called with the option's value alone
    if wanted:
        say(f"onnx-gradcam {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help=f"Show where in the program an error arose; {_DEBUG}=1 does the same."),
    ] = False,
) -> None:
    """Grad-CAM for any ONNX model: see what a classifier looks at, or build the heatmap into the model itself.

    \b
    Examples:
      onnx-gradcam explain model.onnx photo.jpg --preprocess torchvision --labels names.txt
      onnx-gradcam attach model.onnx -o explained.onnx
      onnx-gradcam inspect model.onnx

    Exit codes: 0 done, 1 refused or failed (one sentence on stderr says why), 2 wrong usage.
    """  # noqa: D301 - \b keeps the lines of the example apart
    if debug:
        os.environ[_DEBUG] = "1"


def main(*command: str) -> None:
    """Run the command line; what goes wrong is said in one sentence, without a traceback.

    Args:
        command: words that stand before those of the command line: scripts that are one command put it here.
    """
    for stream in (sys.stdout, sys.stderr):
        # A class name that the terminal cannot show must not end the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app([*command, *sys.argv[1:]], prog_name="onnx-gradcam")
    except MemoryError:
        complain("there is not enough memory for this; try a smaller --batch-size or image")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        _abandon_output()
        sys.exit(1)
    except Exception as exc:
        if os.environ.get(_DEBUG, "") not in {"", "0"}:
            raise
        if isinstance(exc, OSError):
            _abandon_output()
            complain(f"the system cannot read or write here ({exc}); make room, or write somewhere else")
            sys.exit(1)
        what = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
        complain(
            f"this should not have happened ({what}); please report it with what "
            f"`{_DEBUG}=1 onnx-gradcam ...` prints for the same command"
        )
        sys.exit(1)


def _abandon_output() -> None:
    """Let standard output go nowhere: what it still holds must not fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
