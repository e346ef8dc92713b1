"""Progress on stderr: which stage of how many, how far it is, and how long it still takes.

A piece of work opens `work` and names its stages; what it calls finds the bars by `stage` and `over`, so nothing is
handed down. Work within work joins the one outside, whose own stages come after its. Remaining time is that of the
stage, and says so: how long the next one takes nobody knows before it has begun.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}, {remaining} left{where}]"
DRAWING = "drawing"  # a stage of much work
_ALONE = 0.5  # seconds: work of one stage that is over by then, such as scoring one picture, shows nothing


class Progress:
    """The bars of one piece of work: `stages` in the order they come."""

    def __init__(self, shown: bool, stages: Sequence[str] = ()) -> None:
        self.shown = shown
        self.stages = list(stages)
        self._begun = 0

    def expect(self, stages: Sequence[str]) -> None:
        """Stages of work within this one, which come before what is left of it."""
        left = self.stages[self._begun :]
        self.stages[self._begun : self._begun] = [name for name in stages if name not in left]

    def bar(self, stage: str, total: int, unit: str) -> Any:
        """A bar of tqdm for the next stage of this name; see `stage`."""
        from tqdm import tqdm

        screen = shutil.get_terminal_size()  # which knows what to take where a terminal tells nothing
        count = len(self.stages)
        if stage in self.stages[self._begun :]:
            self._begun = self.stages.index(stage, self._begun) + 1
        return tqdm(
            desc=f"{self._begun}/{count} {stage}" if count > 1 else stage,
            total=total,
            unit=unit,
            file=sys.stderr,
            ncols=screen.columns - 1,
            nrows=screen.lines,
            delay=0 if count > 1 else _ALONE,
            bar_format=_FORMAT.replace("{where}", " in this stage" if count > 1 else ""),
            **({} if self.shown else {"disable": True}),  # unsaid, it is TQDM_DISABLE's to say
        )


_SILENT = Progress(False)
_IN_FORCE: ContextVar[Progress] = ContextVar("progress", default=_SILENT)


def is_wanted(progress: bool | None) -> bool:
    """Whether bars are shown: as was said, or else (None) where a person may look, in a terminal or a notebook."""
    if progress is not None:
        return progress
    return sys.stderr is not None and (sys.stderr.isatty() or _in_notebook())


@contextmanager
def work(progress: bool | None, *stages: str) -> Iterator[None]:
    """Show the stages of what is done within, on whose word see `is_wanted`; inside other work they join that."""
    outer = _IN_FORCE.get()
    if outer is not _SILENT:
        outer.expect(stages)
        yield
        return
    token = _IN_FORCE.set(Progress(is_wanted(progress), stages))
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


@contextmanager
def stage(name: str, total: int, unit: str = "images") -> Iterator[Callable[[], Any]]:
    """Show a stage of the work in force while in here; what is yielded is called for each of `total` that is done."""
    with _IN_FORCE.get().bar(name, total, unit) as bar:
        yield bar.update


def over(name: str | None, items: Iterable[T], total: int, unit: str = "images") -> Iterator[T]:
    """The items, with a stage of the work in force shown meanwhile; None for no stage of their own."""
    if name is None:
        yield from items
        return
    with stage(name, total, unit) as step:
        for item in items:
            yield item
            step()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
