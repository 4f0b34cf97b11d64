"""The group of commands: where errors become one sentence and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from onnx_gradcam.errors import ExplainError

from .output import complain

__all__ = ["Commands"]


class Commands(TyperGroup):
    """All commands: in the order of their use, an `ExplainError` ends one with exit code 1, Ctrl-C with 130."""

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
