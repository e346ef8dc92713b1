"""The table of a report: a line for every image, with its picture, heat map, verdict, and what is to be told of it.

The lines are whole without a script, so that they can be read, printed and kept; it sorts, filters and enlarges.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from anomalib_lite.fitted.calibration import ALARM, GOOD, LOOK_AGAIN, NO_VERDICT
from anomalib_lite.images.mvtec import is_good_name
from anomalib_lite.report.pictures import data_uri, size_of
from anomalib_lite.results import Scores


def kinds_of(ids: Iterable[str]) -> list[str]:
    """The kind of every image: the folder it lies in, when there are several folders; else "image".

    Folders that all of these lie in are left out of their names.
    """
    folders = [name.split("/")[:-1] for name in ids]
    if len(set(map(tuple, folders))) < 2:
        return ["image"] * len(folders)
    parents = [folder[:-1] for folder in folders]
    shared = min(map(len, parents))
    common = next((i for i in range(shared) if len({folder[i] for folder in parents}) > 1), shared)
    return ["/".join(folder[common:]) or "image" for folder in folders]


def table_rows(
    scores: Scores,
    kinds: Sequence[str],
    pictures: Mapping[int, bytes],
    heat: Sequence[bytes],
    lines: Mapping[int, str],
    lost: Mapping[str, str],
) -> str:
    """The lines of the table, the highest score first; unreadable images come last.

    Parameters
    ----------
    kinds : of the images of `scores`, then of its unreadable ones
    pictures : small pictures by position in `scores`, as JPEG
    heat : heat maps by position, as PNG; none at the global level
    lines : outlines by position, as SVG
    lost : by id, why an image has no picture
    """
    verdicts = scores.verdicts

    def line(i: int) -> str:
        name, remarks = scores.ids[i], []
        if scores.ids[i] in lost:
            remarks.append(f"No picture: {lost[name]}")
        if name in scores.notes:
            remarks.append(scores.notes[name])
        shown = None
        if i in pictures:
            shown = layered(pictures[i], heat[i] if heat else None, f"{name}: {verdicts[i]}", lines.get(i, ""))
        return _line(scores, i, kinds[i], verdicts[i], shown, remarks)

    made = [line(i) for i in by_score(scores)]
    for entry, kind in zip(scores.unreadable, kinds[len(scores) :], strict=True):
        made.append(
            f'<tr data-kind="{_text(kind)}" data-verdict="{NO_VERDICT}"><td class="look soft">no picture</td>'
            f'<th scope="row">{_text(entry.id)}<p class="reason">{_text(entry.reason)}</p></th>'
            f'<td class="number">–</td><td class="number">–</td>{_verdict(NO_VERDICT)}</tr>'
        )
    return "\n".join(made)


def by_score(scores: Scores) -> list[int]:
    """Positions in `scores` in the order of the table."""
    return sorted(range(len(scores)), key=lambda i: -scores.scores[i])


def layered(picture: bytes, heat: bytes | None, said: str, lines: str = "") -> str:
    """A picture with its heat map and outlines over it; `said` is what it shows, in words."""
    width, height = size_of(picture)
    over = "" if heat is None else f'<img class="heat" alt="" src="{data_uri(heat, "png")}">'
    shown = f'<img alt="{_text(said)}" width="{width}" height="{height}" src="{data_uri(picture, "jpeg")}">'
    return f'<span class="picture">{shown}{over}{lines}</span>'


def filters(scores: Scores, kinds: Sequence[str]) -> str:
    """The choices of verdict and kind, with how many there are of each; of one kind there is nothing to choose."""
    verdicts = [*scores.verdicts, *(NO_VERDICT for _ in scores.unreadable)]
    order = sorted(set(kinds), key=lambda kind: (not is_good_name(kind), kind))
    chosen = _choice("verdict", [name for name in (ALARM, LOOK_AGAIN, GOOD, NO_VERDICT) if name in verdicts], verdicts)
    return chosen + (_choice("kind", order, kinds) if len(order) > 1 else "")


def _choice(name: str, options: Sequence[str], every: Sequence[str]) -> str:
    entries = "".join(f'<option value="{_text(key)}">{_text(key)} ({every.count(key)})</option>' for key in options)
    return f'<label>{name.capitalize()} <select id="{name}"><option value="">all</option>{entries}</select></label>'


def _line(scores: Scores, i: int, kind: str, verdict: str, shown: str | None, remarks: Sequence[str]) -> str:
    look = '<td class="look soft">no picture</td>'
    if shown is not None:
        look = f'<td class="look"><button type="button" class="open">{shown}</button></td>'
    told = "".join(f'<p class="reason">{_text(remark)}</p>' for remark in remarks)
    about = "".join(f"<p>{_text(sentence)}</p>" for sentence in _about(scores, i))
    score = "Infinity" if np.isinf(scores.scores[i]) else f"{scores.scores[i]:.6g}"
    return (
        f'<tr data-kind="{_text(kind)}" data-verdict="{verdict}" data-score="{score}" '
        f'data-p="{scores.p_values[i]:.6g}">{look}'
        f'<th scope="row"><span class="name">{_text(scores.ids[i])}</span>{told}'
        f'<div class="about" hidden>{about}</div></th>'
        f'<td class="number">{scores.scores[i]:.4f}</td><td class="number">{scores.p_text(i)}</td>'
        f"{_verdict(verdict)}</tr>"
    )


def _about(scores: Scores, i: int) -> list[str]:
    """What is told of an image beside its picture, large."""
    told = [
        f"Score {scores.scores[i]:.4f}; above {scores.threshold:.4f} it is an alarm. "
        f"P-value {scores.p_text(i)}: the share of good images expected to score at least as high."
    ]
    if scores.as_a_whole(i):
        told.append(
            "It is unlike the good ones as a whole, more than at any one place: a piece may be missing, doubled or "
            "swapped."
        )
    if scores.nearest is not None:
        near = scores.nearest[i]
        box = ", ".join(map(str, near.train_box))
        told.append(
            f"Its worst place looks most like {near.train_id} at {box} (left, top, right, bottom), "
            f"distance {near.distance:.3f}."
        )
    return told


def _verdict(verdict: str) -> str:
    return f'<td class="verdict {verdict.replace(" ", "-")}">{verdict}</td>'


def _text(value: str) -> str:
    return html.escape(value)
