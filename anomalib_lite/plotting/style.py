"""What all figures share: sizes, colours and a figure that belongs to no global state.

Names of files, folders and models come from strangers and are drawn as they stand: `LiteralFigure` reads no formula
between dollar signs, `literal` keeps a name to one line, `shortened` to the width of a title.

Colours are Okabe and Ito's (2008), told apart by the colour-blind, in an order of falling lightness; lines also differ
in dash and points in marker, so that they can be told apart in grey print.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import is_color_like, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

GOOD = "#8a8a8a"
ALARM = "#d55e00"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
TEXT = 8  # points
PAGE_WIDTH = 6.3  # inches: an A4 page between its margins


class LiteralFigure(Figure):
    """A figure whose texts are drawn as they stand: dollar signs begin no formula, a missing glyph warns nobody."""

    def draw(self, renderer: RendererBase) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_text(_drawable(text.get_text()))
        super().draw(renderer)


def new_figure(width: float = PAGE_WIDTH, height: float = 3.2) -> Figure:
    """An empty figure in inches, drawn by Agg, known to nobody else."""
    figure = LiteralFigure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def turned_dark(figure: Figure, ground: str, ink: str) -> Figure:
    """The same figure with `ground` for white and `ink` for black; other colours stay."""
    parts = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
    for axis in figure.axes:
        axis.tick_params(color=ink, labelcolor=ink)  # ticks that are made when it is drawn
    for artist in figure.findobj():
        for part in parts:
            if not (hasattr(artist, f"get_{part}") and hasattr(artist, f"set_{part}")):
                continue
            colour = getattr(artist, f"get_{part}")()
            if not is_color_like(colour):  # of scattered points an array
                continue
            red, green, blue, opacity = to_rgba(colour)
            if opacity and red == green == blue and red in (0.0, 1.0):
                getattr(artist, f"set_{part}")((*to_rgb(ink if red == 0.0 else ground), opacity))
    return figure


def one_axis(width: float = PAGE_WIDTH, height: float = 2.8) -> tuple[Figure, Axes]:
    """A figure of one plot."""
    figure = new_figure(width, height)
    return figure, axes_of(figure)[0]


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


def literal(name: str) -> str:
    """A name as one line of text: what cannot be printed is written as an escape, such as ``\\n``.

    An empty one, or one that begins with an underscore, gets a space: matplotlib leaves such labels out of legends.
    """
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)
    shown = _drawable(shown)  # here too, since matplotlib copies the names of ticks when it draws
    return f" {shown}" if shown[:1] in ("", "_") else shown


def shortened(name: str, most: int = 24) -> str:
    """The end of a name that is too long for a title, as `literal` text: ends differ, beginnings are folders."""
    shown = literal(name)
    return shown if len(shown) <= most else "…" + shown[1 - most :]


def _drawable(text: str) -> str:
    """Text with a box for every letter that the font lacks."""
    glyphs = _glyphs(*FontProperties().get_family())
    return "".join(letter if ord(letter) in glyphs else "□" for letter in text)


@lru_cache(maxsize=4)
def _glyphs(*families: str) -> frozenset[int]:
    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in families]
    return frozenset({ord("\n")}.union(*(font.get_charmap() for font in fonts)))
