"""The command line: one file per command, which parses, calls a library function and prints.

Importing this package loads nothing heavy, so that `--help` answers at once: a command imports what it needs when it
runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onnx_gradcam import __version__
from onnx_gradcam.errors import ExplainError

from ._options import Command
from ._output import complain, say
from .attach import attach
from .batch import batch
from .compare import compare
from .deploy import kserve, triton
from .doctor import doctor
from .evaluate import evaluate
from .explain import explain
from .export import export
from .inspect import inspect
from .listings import methods, ops
from .serve import serve
from .studio import studio
from .trust import drift, report
from .verify import verify
from .web import web

__all__ = ["app", "main"]

_DEBUG = "ONNX_GRADCAM_DEBUG"


class Commands(TyperGroup):
    """All commands, in the order of their use; an `ExplainError` ends one with exit code 1, Ctrl-C with 130."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is Typer's
        """The names in the order in which they were added."""
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ExplainError as exc:
            if ctx.params.get("debug"):
                raise
            complain(str(exc))
            raise typer.Exit(1) from exc
        except KeyboardInterrupt as exc:
            raise typer.Exit(130) from exc


app = typer.Typer(
    name="onnx-gradcam",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: it reads the same in a terminal, a pipe and the documentation.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_COMMANDS = (
    *(explain, attach, inspect, studio, compare, batch, evaluate, report, drift, serve, triton, kserve, web),
    *(verify, methods, ops, doctor),
)
for _command in _COMMANDS:
    app.command(cls=Command)(_command)
app.add_typer(export)


def _print_version(value: bool) -> None:  # noqa: FBT001 - called with the option's value alone
    if value:
        say(f"onnx-gradcam {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Print the traceback of an error; {_DEBUG}=1 does the same.")
    ] = False,
) -> None:
    """See what an ONNX vision model looks at, and add heatmap outputs to it.

    \b
    Examples:
      onnx-gradcam explain model.onnx photo.jpg --preprocess torchvision --labels names.txt
      onnx-gradcam attach model.onnx -o explained.onnx
      onnx-gradcam inspect model.onnx

    Exit codes: 0 success, 1 failure (one sentence on stderr says why), 2 wrong usage.
    """  # noqa: D301 - \b keeps the lines of the example apart
    if debug:
        os.environ[_DEBUG] = "1"


def main(*command: str) -> None:
    """Run the command line, with the words of `command` first; report errors in one sentence, without a traceback."""
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
        _abandon_output()
        sys.exit(1)
    except Exception as exc:
        if os.environ.get(_DEBUG, "") not in {"", "0"}:
            raise
        if isinstance(exc, OSError):
            _abandon_output()
            complain(f"the system cannot read or write here ({exc}); make room, or write somewhere else")
            sys.exit(1)
        cause = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
        complain(
            f"this should not have happened ({cause}); please report it with what "
            f"`{_DEBUG}=1 onnx-gradcam ...` prints for the same command"
        )
        sys.exit(1)


def _abandon_output() -> None:
    """Redirect standard output to nowhere: what is in its buffer must not fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
