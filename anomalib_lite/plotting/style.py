"""What all figures share: sizes, colours and a figure that belongs to no global state.

Colours are Okabe and Ito's (2008), told apart by the colour-blind, in an order of falling lightness; lines also differ
in dash and points in marker, so that they can be told apart in grey print.
"""

from __future__ import annotations

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

GOOD = "#8a8a8a"
ALARM = "#d55e00"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
TEXT = 8  # points
PAGE_WIDTH = 6.3  # inches: an A4 page between its margins


def new_figure(width: float = PAGE_WIDTH, height: float = 3.2) -> Figure:
    """An empty figure in inches, drawn by Agg, known to nobody else."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axes_of(figure: Figure, rows: int = 1, columns: int = 1, **options: Any) -> list[Axes]:
    """Axes of a grid, row by row, with small text and no box around them."""
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axis in axes:
        axis.tick_params(labelsize=TEXT - 1)
        axis.spines[["top", "right"]].set_visible(False)
    return axes


def whole_numbers(axis: Axes, which: Literal["x", "y"]) -> None:
    """Ticks at whole numbers only, for counts."""
    (axis.xaxis if which == "x" else axis.yaxis).set_major_locator(MaxNLocator(integer=True))


def logarithmic(axis: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5, not powers of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def label(axis: Axes, x: str, y: str, title: str = "") -> None:
    """Name both axes, and the plot when there is something to say."""
    axis.set_xlabel(x, fontsize=TEXT)
    axis.set_ylabel(y, fontsize=TEXT)
    if title:
        axis.set_title(title, fontsize=TEXT + 1, loc="left")


def legend(axis: Axes, **options: Any) -> None:
    """A legend without a frame, in small text."""
    axis.legend(fontsize=TEXT - 1, frameon=False, **options)


def shortened(name: str, most: int = 24) -> str:
    """The end of a name that is too long for a title: ends differ, beginnings are folders."""
    return name if len(name) <= most else "…" + name[1 - most :]
