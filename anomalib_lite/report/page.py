"""One self-contained HTML page about a set of scored images: no network, no other files, thousands of images.

Every image is a small picture and its patch scores, one byte each, from which the page paints the heat map when it is
looked at. The page's own text is in `page.html`; this module fills it. Whatever comes from file names
is escaped or goes in as JSON, so that a name cannot become markup or script. An image that has gone since it was scored
keeps its line and is named, with the reason, among those that could not be drawn.
"""

from __future__ import annotations

import base64
import datetime
import html
import io
import json
import os
import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from anomalib_lite.detector import Detector
from anomalib_lite.diagnosis.map_figure import TRAINING, plot_embedding_map
from anomalib_lite.diagnosis.projection import Projector
from anomalib_lite.embedding.streaming import embed_whole
from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.fitted.coverage import coverage_verdict
from anomalib_lite.fitted.drift import tied_share, watch
from anomalib_lite.fitted.duplicates import NearDuplicate, near_duplicates
from anomalib_lite.images.mvtec import is_good_name
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource, ReadsReduced
from anomalib_lite.plotting.curves import plot_calibration, plot_roc, plot_score_histogram
from anomalib_lite.plotting.overlays import COLOURS
from anomalib_lite.plotting.retrieval import plot_retrieval
from anomalib_lite.plotting.scored import pictures_of
from anomalib_lite.results import Scores

_TEMPLATE = Path(__file__).with_name("page.html")
# Bytes for all pictures together, so that a page of 5 000 images stays below 30 MB with its maps.
_PICTURE_BYTES = 14_000_000
_SIDE = 320  # of a picture, in pixels at most; smaller ones when there are too many
_SIDES = (256, 192, 128, 96, 64)
_RETRIEVALS = 6  # alarms explained by their nearest good patch
_PACKAGES = ("anomalib_lite", "torch", "torchvision", "numpy", "scikit-learn", "umap-learn", "pillow")


def write_report(
    detector: Detector,
    images: Any,
    path: str | os.PathLike[str],
    *,
    training_images: Any | None = None,
    scores: Scores | None = None,
) -> Path:
    """Score images and write what was found as one HTML page.

    Parameters
    ----------
    detector : a fitted Detector
    images : folder, paths, arrays, PIL images, tensor or ImageSource
    path : the page; replaced in one step
    training_images : optional
        Those the detector was fitted on: they appear in the map, beside alarms, and are searched for duplicates.
    scores : optional
        Of these images, if they are scored already.

    Raises
    ------
    ValueError
        If no image can be read.
    OSError
        If the page cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]
    >>> detector = Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:20])
    >>> write_report(detector, parts[20:], Path(tempfile.mkdtemp(), "report.html")).stat().st_size > 10_000
    True
    """
    opened = detector.open(images)
    source = opened if isinstance(opened, Thumbnails) else Thumbnails(opened)
    if scores is None:
        scores = detector.score(source, vectors=True)
    if len(scores) == 0:
        reasons = "".join(f"\n  {entry.reason}" for entry in scores.unreadable[:5])
        raise ValueError(f"none of {len(source)} images can be read; there is nothing to report{reasons}")
    training = None if training_images is None else detector.open(training_images)
    lost: dict[str, str] = {}
    # Figures first: what they read leaves its small picture behind, and is not decoded again.
    figures = _figures(detector, scores, kinds_of(scores.ids), source, training, lost)
    data = _as_script_json(_data(scores, source, lost))
    unreadable = [(entry.id, entry.reason) for entry in scores.unreadable]
    page = _filled(
        _TEMPLATE.read_text(encoding="utf-8"),
        {
            "title": html.escape(f"{len(scores)} images scored, {int(scores.alarms.sum())} alarms"),
            "made": html.escape(_made(detector)),
            "tiles": _tiles(scores),
            "summary": _summary(detector, scores),
            "unreadable": _listed("Unreadable", "These files were not scored.", unreadable)
            + _listed("Could not be drawn", "These have gone or changed since they were scored.", list(lost.items()))
            + _listed("Not wholly shown", "These were scored, but not by all they hold.", list(scores.notes.items())),
            "figures": figures,
            "settings": _settings(detector),
            "data": data,
        },
    )
    return write_atomically(Path(path), page.encode("utf-8", errors="backslashreplace"))


class Thumbnails:
    """An image source that keeps a small picture, some 10 kB of WebP, of every image read through it.

    Give it to `Detector.score`, with ``vectors=True``, and both to `write_report`, and no image is decoded twice.
    `pictures` is by position.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.ids = source, source.ids
        self.pictures: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        return self._kept(i, self.source.read(i))

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """See `images.sources.ReadsReduced`: large pictures are decoded for scoring as they are without thumbnails."""
        if isinstance(self.source, ReadsReduced):
            pixels, size = self.source.read_reduced(i, least)
            return self._kept(i, pixels), size
        pixels = self.read(i)
        return pixels, (pixels.shape[0], pixels.shape[1])

    def _kept(self, i: int, pixels: np.ndarray) -> np.ndarray:
        if i not in self.pictures:
            self.pictures[i] = _webp(Image.fromarray(pixels), _SIDE)
        return pixels


def kinds_of(ids: Iterable[str]) -> list[str]:
    """The kind of every image: the folder it lies in, when there are several folders; else "image"."""
    folders = [name.rsplit("/", 1)[0] if "/" in name else "" for name in ids]
    return [folder or "image" for folder in folders] if len(set(folders)) > 1 else ["image"] * len(folders)


def _filled(template: str, parts: dict[str, str]) -> str:
    """The template with every @@name@@ replaced, in one go, so that no part is searched for names."""
    pieces = template.split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _made(detector: Detector) -> str:
    moment = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"Made {moment} by anomalib_lite; detector fitted on {detector.n_train_} good images."


def _tiles(scores: Scores) -> str:
    entries = [
        (str(len(scores)), "images scored"),
        (str(int(scores.alarms.sum())), "alarms"),
        (f"{scores.threshold:.4g}", "alarm threshold"),
        (f"{scores.false_alarm_rate:g}", "target false-alarm rate"),
        (str(len(scores.unreadable)), "unreadable"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in entries)


def _summary(detector: Detector, scores: Scores) -> str:
    calibration = detector.fitted_.calibration
    # Pictures in a folder named good are good: of others a share may be defective, and is no drift.
    good = np.array(["/" in name and is_good_name(name.rsplit("/", 1)[0]) for name in scores.ids], dtype=bool)
    known = bool(good.any())
    found = watch(
        scores.p_values[good] if known else scores.p_values,
        calibration.n,
        tolerated_defects=0.0 if known else 0.15,
        tied=tied_share(calibration.scores),
    )
    paragraphs = [calibration.explain(scores.p_values[good])]
    if any(scores.p_text(i).startswith("≤") for i in range(len(scores))):
        smallest = f"≤ {1 / (calibration.n + 1):.4f}"
        paragraphs.append(f"A p-value {smallest} is the smallest that {calibration.n} good images allow.")
    if found.alarm:
        where = f"In the {good.sum()} images of folders named good: " if known else ""
        paragraphs.append(f"{where}{found.explain()}.")
    return "".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)


def _listed(title: str, meaning: str, files: list[tuple[str, str]]) -> str:
    if not files:
        return ""
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(reason)}</td></tr>" for name, reason in files)
    return (
        f"<h2>{title} ({len(files)})</h2><p>{meaning}</p>"
        f"<table><thead><tr><th>file</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _settings(detector: Detector) -> str:
    settings = {key: value for key, value in detector.config().items() if key != "scorer_parameters"}
    settings |= {f"{detector.scorer.name}: {key}": value for key, value in detector.scorer.parameters().items()}
    settings["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            settings[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            continue
    return "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>" for key, value in settings.items()
    )


def _data(scores: Scores, source: Thumbnails, lost: dict[str, str]) -> dict[str, Any]:
    """What the page's script needs: pictures, patch scores as bytes, colours and numbers."""
    pictures = _pictures(scores, source, lost)
    low, high = scores.map_scale

    def entry(i: int) -> dict[str, Any]:
        height, width = scores.image_sizes[i]
        found: dict[str, Any] = {
            "id": scores.ids[i],
            "score": float(scores.scores[i]),
            "p": float(scores.p_values[i]),
            "pText": scores.p_text(i),
            "alarm": bool(scores.alarms[i]),
            "whole": scores.as_a_whole(i),
            "thumbnail": base64.b64encode(pictures.get(i, b"")).decode(),
            "width": width,
            "height": height,
        }
        if scores.patch_scores is not None:
            patches = scores.patch_scores[i]
            if (
                not np.isfinite(patches).all() or scores.poses is not None
            ):  # the page lays the grid over the picture, which has a part of it
                patches = scores.anomaly_map(i, patches.shape)
            heat = np.clip((patches - low) / max(high - low, 1e-12), 0, 1)
            found["map"] = base64.b64encode(np.round(255 * heat).astype(np.uint8).tobytes()).decode()
        if scores.nearest is not None:
            found["nearest"] = asdict(scores.nearest[i])
        return found

    return {
        "images": [entry(i) for i in range(len(scores))],
        "grid": None if scores.patch_scores is None else list(scores.patch_scores.shape[1:]),
        "threshold": scores.threshold,
        "format": "webp",
        "colours": (255 * colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3]).astype(int).flatten().tolist(),
    }


def _pictures(scores: Scores, source: Thumbnails, lost: dict[str, str]) -> dict[int, bytes]:
    """Small pictures by position in `scores`, at the largest side at which all of them fit their budget."""
    position = {name: i for i, name in enumerate(source.ids)}
    read = pictures_of(scores, source)

    def picture(i: int) -> bytes | None:
        where = position.get(scores.ids[i], -1)
        if where not in source.pictures and scores.ids[i] not in lost:
            try:
                read(i)
            except UnreadableImageError as error:
                lost[scores.ids[i]] = str(error)
        return source.pictures.get(where)

    with ThreadPoolExecutor() as pool:
        found = {i: made for i, made in enumerate(pool.map(picture, range(len(scores)))) if made is not None}
        for side in _SIDES:
            if sum(4 * len(content) // 3 for content in found.values()) <= _PICTURE_BYTES:
                break
            smaller = [pool.submit(_webp, Image.open(io.BytesIO(content)), side) for content in found.values()]
            found = {i: made.result() for i, made in zip(found, smaller, strict=True)}
    return found


def _webp(picture: Image.Image, side: int) -> bytes:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=70, method=2)
    return buffer.getvalue()


def _figures(
    detector: Detector,
    scores: Scores,
    kinds: list[str],
    source: Thumbnails,
    training: ImageSource | None,
    lost: dict[str, str],
) -> str:
    drawn = [
        _figure(
            "Score histogram",
            plot_score_histogram(scores.scores, kinds, scores.threshold),
            "Scores by folder; images right of the line alarm.",
        )
    ]
    vectors, rows = _vectors(detector, scores, source)
    names, alarms, duplicates = [kinds[i] for i in rows], scores.alarms[rows], ""
    others, kept = (None, []) if training is None else _embedded(detector, training, [*range(len(training))])
    if training is not None and others is not None:
        if vectors is not None:
            ids, train_ids = [scores.ids[i] for i in rows], [training.ids[i] for i in kept]
            duplicates = _duplicates(near_duplicates(others, train_ids, vectors, ids))
        vectors = others if vectors is None else np.concatenate([others, vectors])
        names = [TRAINING] * len(others) + names
        alarms = np.append(np.zeros(len(others), dtype=bool), alarms)
    if vectors is not None and len(vectors) >= 5:
        placed = Projector(random_state=detector.random_state).fit(vectors)
        figure = plot_embedding_map(placed, names, alarms=alarms.tolist())
        drawn.append(_figure("Embedding map", figure, "Near points are alike; distances between groups mean nothing."))
    defective = np.array([not is_good_name(kind) for kind in kinds])
    if defective.any() and not defective.all():
        drawn.append(_figure("ROC", plot_roc(defective, {"this detector": scores.scores}), "By folder name."))
        drawn.append(_calibration(scores.p_values[~defective], detector.fitted_.calibration.smallest_rate))
    if training is not None and scores.nearest is not None:
        known = set(training.ids)
        for i in np.argsort(-scores.scores, kind="stable")[:_RETRIEVALS].tolist():
            if not scores.alarms[i] or scores.nearest[i].train_id not in known:
                continue
            try:
                figure = plot_retrieval(scores, i, source, training)
                drawn.append(_figure(scores.ids[i], figure, "Its worst place, and the good one most like it."))
            except UnreadableImageError as error:  # of the two, the one that it names
                lost[scores.ids[i]] = str(error)
    return f'<h2>Figures</h2>{duplicates}<div class="figures">{"".join(drawn)}</div>'


def _calibration(p_values: np.ndarray, smallest_rate: float) -> str:
    """The calibration figure of good images; its caption says in words whether the promise held."""
    verdict = coverage_verdict(p_values, smallest_rate=smallest_rate).explain()
    figure = plot_calibration(p_values, smallest_rate=smallest_rate)
    return _figure("Calibration", figure, f"On the images of folders named good, ok or normal. {html.escape(verdict)}")


def _vectors(detector: Detector, scores: Scores, source: Thumbnails) -> tuple[np.ndarray | None, list[int]]:
    """Vectors (m, d) of the scored images, and their positions in `scores`; embedded only if scoring kept none."""
    if scores.vectors is not None:
        return scores.vectors.copy(), list(range(len(scores)))  # torch warns of read-only arrays
    position = {name: i for i, name in enumerate(source.ids)}
    scored = {position[name]: i for i, name in enumerate(scores.ids) if name in position}
    vectors, kept = _embedded(detector, source, list(scored))
    return vectors, [scored[i] for i in kept]


def _embedded(detector: Detector, source: ImageSource, wanted: list[int]) -> tuple[np.ndarray | None, list[int]]:
    try:
        return embed_whole(detector.embedder, source, np.array(wanted, dtype=np.int64), workers=detector.workers)
    except ValueError:  # not one of them can be read any more
        return None, []


def _duplicates(pairs: list[NearDuplicate]) -> str:
    if not pairs:
        return ""
    shown = "".join(f"<li>{html.escape(p.second)} and {html.escape(p.first)}</li>" for p in pairs[:20])
    more = f"<p>and {len(pairs) - 20} more</p>" if len(pairs) > 20 else ""
    return (
        "<p>Nearly the same picture here and in training, which makes results look better than they are:</p>"
        f"<ul>{shown}</ul>{more}"
    )


def _figure(name: str, figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = base64.b64encode(buffer.getvalue()).decode()
    # A row of pictures takes the width of the page.
    kind = "wide" if figure.get_figwidth() > 2 * figure.get_figheight() else ""
    return (
        f'<figure class="{kind}"><img alt="{html.escape(name)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{html.escape(name)}. {caption}</figcaption></figure>"
    )


def _as_script_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in, and stays valid text whatever a file is called."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
