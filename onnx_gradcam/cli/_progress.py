"""Progress bars, on stderr and only in a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Bars", "bars", "progress", "rate", "stages"]


class Bars:
    """A bar over several items, unless there is only one, and below it one over the runs of the current item."""

    def __init__(self, title: str, count: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Lines on stdout are lifted above the bars only where both end up on the same terminal.
        together = sys.stdout.isatty()
        self._shown = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=together)
        self._items = self._shown.add_task(title, total=count, visible=count > 1)
        self._runs = self._shown.add_task("running the model", visible=False)
        if count > 1:
            self._shown.start()

    def advance(self) -> None:
        """Count an item as done."""
        self._shown.advance(self._items)

    def within(self, done: int, total: int) -> None:
        """Show how many runs of the current item are done."""
        self._shown.start()
        if self._shown.tasks[self._runs].completed >= done:
            self._shown.reset(self._runs)
        self._shown.update(self._runs, completed=done, total=total, visible=done < total)

    def close(self) -> None:
        """Remove the bars."""
        self._shown.stop()


@contextlib.contextmanager
def bars(title: str, count: int) -> Iterator[Bars | None]:
    """Bars over `count` items; `None` without a terminal."""
    if not _at_a_terminal():
        yield None
        return
    with contextlib.closing(Bars(title, count)) as shown:
        yield shown


@contextlib.contextmanager
def progress(title: str, count: int) -> Iterator[Callable[[], None]]:
    """A bar over `count` items; call the value after each."""
    with bars(title, count) as shown:
        yield (lambda: None) if shown is None else shown.advance


@contextlib.contextmanager
def stages(*names: str) -> Iterator[Callable[[], None]]:
    """A bar over stages with names; call the value when the next one begins."""
    if not _at_a_terminal():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(names[0], total=len(names))
        left = iter(names[1:])
        yield lambda: bar.update(task, advance=1, description=next(left, names[-1]))


@contextlib.contextmanager
def rate(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with the number per second; call the value with how many are done, and the total if it is known."""
    if not _at_a_terminal():
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=60) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """The number per second."""
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


def _at_a_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
