"""Scores as a notebook shows them: verdicts in a line, and the worst images with their heat maps."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import Protocol

import numpy as np
from matplotlib import colormaps
from PIL import Image

from anomalib_lite.fitted.calibration import NO_VERDICT
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.plotting.overlays import COLOURS, overlaid
from anomalib_lite.plotting.scored import Scored, pictures_of

_WORST = 10  # images that are shown
_HEIGHT = 96  # pixels of a picture


class Shown(Scored, Protocol):
    """Scores with their verdicts, and where the images lie if they are files; see `results.Scores`."""

    @property
    def verdicts(self) -> list[str]: ...
    @property
    def unreadable(self) -> list[UnreadableImage]: ...
    @property
    def patch_scores(self) -> np.ndarray | None: ...
    @property
    def source(self) -> ImageSource | None: ...
    def p_text(self, i: int) -> str: ...


def as_html(scores: Shown, line: str) -> str:
    """A line, and the worst images as a table; what strangers wrote is escaped."""
    verdicts = scores.verdicts
    worst = np.argsort(-scores.scores, kind="stable")[:_WORST].tolist()
    read = _reader(scores)
    rows = []
    for i in worst:
        told = scores.ids[i], verdicts[i], f"{scores.scores[i]:.4g}", scores.p_text(i)
        rows.append([_thumbnail(scores, i, read), *map(_text, told)])
    lost = scores.unreadable[:_WORST]
    rows += [["", _text(entry.id), _text(NO_VERDICT), "", _text(entry.reason)] for entry in lost]
    more = len(scores.ids) + len(scores.unreadable) - len(rows)
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<p>{_text(line)}</p><table><caption>the highest scores first</caption><thead><tr><th></th><th>image</th>"
        f"<th>verdict</th><th>score</th><th>p-value</th></tr></thead><tbody>{cells}</tbody></table>"
        + (f"<p>… and {more} more</p>" if more else "")
    )


def _reader(scores: Shown) -> Callable[[int], np.ndarray] | None:
    try:
        return None if scores.source is None else pictures_of(scores, scores.source)
    except ValueError:  # none of them is there any more
        return None


def _thumbnail(scores: Shown, i: int, read: Callable[[int], np.ndarray] | None) -> str:
    """Image `i` under its heat map; the heat map alone where the image is no file; nothing at the global level."""
    if scores.patch_scores is None:
        return ""
    height, width = scores.image_sizes[i]
    shown = _HEIGHT, max(1, round(width * _HEIGHT / height))
    try:
        if read is None:
            low, high = scores.map_scale
            heat = np.clip((scores.anomaly_map(i, shown) - low) / max(high - low, 1e-12), 0, 1)
            pixels = (colormaps[COLOURS](heat)[..., :3] * 255).astype(np.uint8)
        else:
            picture = Image.fromarray(read(i))
            pixels = overlaid(scores, i, np.array(picture.resize(shown[::-1], Image.Resampling.BOX)))
    except UnreadableImageError as error:  # gone by now
        return _text(str(error))
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=85)
    told = _text(f"heat map of {scores.ids[i]}")
    return f'<img alt="{told}" src="data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}">'


def _text(text: str) -> str:
    # A file's name may be no text, which a page cannot hold.
    return html.escape(text.encode("utf-8", errors="backslashreplace").decode("utf-8"))
