"""One self-contained HTML page about a set of scored images: no network, no other files, thousands of images.

Every image is a small picture and its patch scores, one byte each, from which the page paints the heat map when it is
looked at. The page's own text is in `page.html`; this module fills it. Whatever comes from file names
is escaped or goes in as JSON, so that a name cannot become markup or script.
"""

from __future__ import annotations

import base64
import datetime
import html
import io
import json
import os
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
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
from anomalib_lite.fitted.calibration import drift
from anomalib_lite.fitted.duplicates import near_duplicates
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.plotting.curves import plot_calibration, plot_roc, plot_score_histogram
from anomalib_lite.plotting.overlays import COLOURS
from anomalib_lite.plotting.retrieval import plot_retrieval
from anomalib_lite.results import Scores

_TEMPLATE = Path(__file__).with_name("page.html")
# Bytes for all pictures together, so that a page of 5 000 images stays below 30 MB with its maps.
_PICTURE_BYTES = 14_000_000
_SIDES = (320, 256, 192, 128, 96, 64)
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
    """
    source = open_source(images)
    scores = scores or detector.score(source)
    if len(scores) == 0:
        reasons = "".join(f"\n  {entry.reason}" for entry in scores.unreadable[:5])
        raise ValueError(f"none of {len(source)} images can be read; there is nothing to report{reasons}")
    training = None if training_images is None else open_source(training_images)
    kinds = kinds_of(scores.ids)
    page = _filled(
        _TEMPLATE.read_text(encoding="utf-8"),
        {
            "title": html.escape(f"{len(scores)} images scored, {int(scores.alarms.sum())} alarms"),
            "made": html.escape(_made(detector)),
            "tiles": _tiles(scores),
            "summary": _summary(detector, scores),
            "unreadable": _unreadable(scores),
            "figures": _figures(detector, scores, kinds, source, training),
            "settings": _settings(detector),
            "data": _as_script_json(_data(scores, source)),
        },
    )
    return write_atomically(Path(path), page.encode("utf-8", errors="backslashreplace"))


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
    paragraphs = [detector.fitted_.calibration.explain()]
    found = drift(scores.p_values, detector.fitted_.calibration.n)
    if found.p_value < 0.01:
        paragraphs.append(
            "The p-values of these images are smaller than those of good images like the training ones would be "
            f"(Kolmogorov–Smirnov, p = {found.p_value:.2g}). That is so when many are defective; if most are good, "
            "the light, the lens or the product has changed, and the threshold no longer holds: fit again."
        )
    return "".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)


def _unreadable(scores: Scores) -> str:
    if not scores.unreadable:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(entry.id)}</td><td>{html.escape(entry.reason)}</td></tr>" for entry in scores.unreadable
    )
    return (
        f'<h2 id="unreadable">Unreadable ({len(scores.unreadable)})</h2><p>These files were not scored.</p>'
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


def _data(scores: Scores, source: ImageSource) -> dict[str, Any]:
    """What the page's script needs: pictures, patch scores as bytes, colours and numbers."""
    position = {name: i for i, name in enumerate(source.ids)}
    side = _picture_side(scores, source, position)
    low, high = scores.map_scale

    def entry(i: int) -> dict[str, Any]:
        picture, width, height = _picture(source.read(position[scores.ids[i]]), side)
        found: dict[str, Any] = {
            "id": scores.ids[i],
            "score": float(scores.scores[i]),
            "p": float(scores.p_values[i]),
            "alarm": bool(scores.alarms[i]),
            "thumbnail": picture,
            "width": width,
            "height": height,
        }
        if scores.patch_scores is not None:
            heat = np.clip((scores.patch_scores[i] - low) / max(high - low, 1e-12), 0, 1)
            found["map"] = base64.b64encode(np.round(255 * heat).astype(np.uint8).tobytes()).decode()
        if scores.nearest is not None:
            nearest = scores.nearest[i]
            found["nearest"] = {
                "train_id": nearest.train_id,
                "train_box": list(nearest.train_box),
                "distance": float(nearest.distance),
            }
        return found

    with ThreadPoolExecutor() as pool:
        entries = list(pool.map(entry, range(len(scores))))
    return {
        "images": entries,
        "grid": None if scores.patch_scores is None else list(scores.patch_scores.shape[1:]),
        "threshold": scores.threshold,
        "format": "webp",
        "colours": (255 * colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3]).astype(int).flatten().tolist(),
    }


def _picture_side(scores: Scores, source: ImageSource, position: dict[str, int]) -> int:
    """The largest side in pixels at which all pictures together fit their budget, judged by a few."""
    some = scores.ids[:: max(1, len(scores) // 8)][:8]
    pixels = [source.read(position[name]) for name in some]
    for side in _SIDES:
        mean = np.mean([len(_picture(picture, side)[0]) for picture in pixels])
        if mean * len(scores) <= _PICTURE_BYTES:
            return side
    return _SIDES[-1]


def _picture(pixels: np.ndarray, side: int) -> tuple[str, int, int]:
    """An image in base64 of at most `side` pixels, and its original width and height."""
    picture = Image.fromarray(pixels)
    width, height = picture.size
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=70, method=2)
    return base64.b64encode(buffer.getvalue()).decode(), width, height


def _figures(
    detector: Detector, scores: Scores, kinds: list[str], source: ImageSource, training: ImageSource | None
) -> str:
    drawn: list[tuple[str, Callable[[], Figure], str]] = []
    duplicates = ""
    position = {name: i for i, name in enumerate(source.ids)}
    scored = np.array([position[name] for name in scores.ids])
    vectors, _ = embed_whole(detector.embedder, source, scored, workers=detector.workers)
    if training is not None:
        others, kept = embed_whole(detector.embedder, training, workers=detector.workers)
        pairs = near_duplicates(others, [training.ids[i] for i in kept], vectors, scores.ids)
        if pairs:
            shown = "".join(f"<li>{html.escape(p.second)} and {html.escape(p.first)}</li>" for p in pairs[:20])
            more = f"<p>and {len(pairs) - 20} more</p>" if len(pairs) > 20 else ""
            duplicates = (
                f"<p>Nearly the same picture here and in training, which makes results look better than they are:</p>"
                f"<ul>{shown}</ul>{more}"
            )
        vectors, names = np.concatenate([others, vectors]), [TRAINING] * len(others) + kinds
        alarms = np.append(np.zeros(len(others), dtype=bool), scores.alarms)
    else:
        names, alarms = kinds, scores.alarms
    drawn.append(
        (
            "Score histogram",
            lambda: plot_score_histogram(scores.scores, kinds, scores.threshold),
            "Scores by folder; images right of the line alarm.",
        )
    )
    if len(vectors) >= 5:
        result = Projector(random_state=detector.random_state).fit(vectors)
        drawn.append(
            (
                "Embedding map",
                lambda: plot_embedding_map(result, names, alarms=alarms.tolist()),
                "Near points are alike; distances between groups mean nothing.",
            )
        )
    good = [kind.rsplit("/", 1)[-1] == "good" for kind in kinds]
    if any(good) and not all(good):
        defective = ~np.array(good)
        drawn.append(("ROC", lambda: plot_roc(defective, {"this detector": scores.scores}), "By folder name."))
        drawn.append(
            (
                "Calibration",
                lambda: plot_calibration(scores.p_values, defective),
                "On the images of folders named good.",
            )
        )
    worst = [i for i in np.argsort(-scores.scores, kind="stable")[:_RETRIEVALS] if scores.alarms[i]]
    if training is not None and scores.nearest is not None:
        known = set(training.ids)
        for i in worst:
            if scores.nearest[i].train_id in known:
                drawn.append((scores.ids[i], lambda i=i: plot_retrieval(scores, int(i), source, training), ""))  # type: ignore[misc]
    pictures = "".join(_figure(name, draw(), caption) for name, draw, caption in drawn)
    return f'<h2>Figures</h2>{duplicates}<div class="figures">{pictures}</div>'


def _figure(name: str, figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    text = f"{name}. {caption}" if caption else name
    # A row of pictures takes the width of the page.
    kind = "wide" if figure.get_figwidth() > 2 * figure.get_figheight() else ""
    return (
        f'<figure class="{kind}"><img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def _as_script_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in, and stays valid text whatever a file is called."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
