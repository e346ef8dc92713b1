"""The figure of `capability`: a curve for each kind of defect, and a map of where they are found."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anomalib_lite.diagnosis.capability import Capability
from anomalib_lite.plotting.style import COLOURS, DASHES, TEXT, axes_of, label, legend, logarithmic, new_figure

_MARKS = "osD^"
_BINS = 6  # of sizes whose share found is drawn beside the curve


def plot_capability(result: Capability) -> Figure:
    """Probability of detection by size, and the share found of those expected over the image."""
    figure = new_figure(width=8.6, height=3.6)
    left, right = axes_of(figure, 1, 2)
    for number, (kind, curve) in enumerate(result.curves.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        sizes = np.geomspace(curve.smallest, curve.largest, 200)
        left.plot(sizes, curve.probability(sizes), dash, color=colour)
        left.fill_between(sizes, curve.lower(sizes), curve.probability(sizes), color=colour, alpha=0.12, linewidth=0)
        painted = sorted((defect.size, defect.found) for defect in result.defects if defect.kind == kind)
        bins = [some for some in np.array_split(np.array(painted, dtype=float), _BINS) if len(some)]
        left.plot(
            [np.exp(np.log(some[:, 0]).mean()) for some in bins],
            [some[:, 1].mean() for some in bins],
            _MARKS[number % len(_MARKS)],
            color=colour,
            markersize=4,
            label=kind,
        )
    left.axhline(0.9, color="black", linewidth=0.8, linestyle=":")
    logarithmic(left)
    left.set_ylim(-0.03, 1.03)
    unit = "" if result.pixel_size is None else f" ({result.pixel_size:g} mm each)"
    label(left, f"size in pixels of the picture{unit}", "probability of detection", "Found, by size (shade: 95 %)")
    legend(left, loc="upper left")
    shown = right.imshow(np.ma.masked_invalid(result.where), vmin=0, vmax=2, cmap="PuOr", extent=(0, 1, 1, 0))
    for (row, column), share in np.ndenumerate(result.where):
        if not np.isnan(share):
            dark = abs(share - 1) > 0.7
            place = (column + 0.5) / result.where.shape[1], (row + 0.5) / result.where.shape[0]
            right.text(*place, f"{share:.1f}", fontsize=TEXT - 1, ha="center", va="center", color="w" if dark else "k")
    right.set_xticks([])
    right.set_yticks([])
    right.set_title("Found where expected, over the picture", fontsize=TEXT, loc="left")
    bar = figure.colorbar(shown, ax=right, shrink=0.8, ticks=[0, 0.5, 1, 1.5, 2])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {value:g}"))
    bar.ax.tick_params(labelsize=TEXT - 1)
    return figure
