"""The figures of a report, each with what it shows in words: scores, map, ROC, calibration, nearest good patches."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from anomalib_lite.detector import Detector
from anomalib_lite.diagnosis.map_figure import TRAINING, plot_embedding_map
from anomalib_lite.diagnosis.projection import Projector
from anomalib_lite.embedding.streaming import embed_whole
from anomalib_lite.fitted.coverage import coverage_verdict
from anomalib_lite.fitted.duplicates import NearDuplicate, near_duplicates
from anomalib_lite.images.mvtec import is_good_name
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.plotting.curves import plot_calibration, plot_roc, plot_score_histogram
from anomalib_lite.plotting.places import FRAME_ALARM, FRAME_GOOD, enlarged, marked
from anomalib_lite.plotting.scored import pictures_of
from anomalib_lite.plotting.style import turned_dark
from anomalib_lite.report.pictures import Thumbnails, as_jpeg, data_uri
from anomalib_lite.results import Scores

_PLACES = 6  # alarms explained by their nearest good patch
_SIDE = 288  # pixels of a picture beside others
_LISTED = 20  # near-duplicates
_DARK = ("#15181c", "#e8edf2")  # ground and ink of the page where it is dark
_INCHES, _DPI = 4.6, 180  # of a figure at most: its text is to be read on a phone, and on paper


def figures(
    detector: Detector,
    scores: Scores,
    kinds: Sequence[str],
    source: Thumbnails,
    training: ImageSource | None,
    lost: dict[str, str],
) -> str:
    """All figures as HTML; of an image that has gone since it was scored the reason is added to `lost`, by id."""
    drawn = [
        _figure(
            "Score histogram",
            plot_score_histogram(scores.scores, kinds, scores.threshold),
            "Scores by folder; images right of the line alarm.",
            _histogram_said(scores, kinds),
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
        # t-SNE: for so many points it is quicker than UMAP, which compiles for ten seconds first.
        placed = Projector("tsne", random_state=detector.random_state).fit(vectors)
        drawn.append(
            _figure(
                "Embedding map",
                plot_embedding_map(placed, names, alarms=alarms.tolist()),
                "Near points are alike; distances between groups mean nothing.",
                f"Map of {len(placed.rows)} images: {_counted(names)}; the {int(alarms.sum())} alarms are ringed.",
            )
        )
    defective = np.array([not is_good_name(kind) for kind in kinds])
    if defective.any() and not defective.all():
        # Ranks, since scikit-learn takes no infinite scores.
        ranks = np.unique(scores.scores, return_inverse=True)[1]
        drawn.append(
            _figure(
                "ROC",
                plot_roc(defective, {"this detector": scores.scores}),
                "By folder name.",
                f"ROC curve of {int(defective.sum())} defective and {int((~defective).sum())} good images: "
                f"AUROC {roc_auc_score(defective, ranks):.3f}.",
            )
        )
        drawn.append(calibration_figure(scores.p_values[~defective], detector.fitted_.calibration.smallest_rate))
    nearest = "" if training is None else _nearest(scores, source, training, lost)
    return f'<h2>Figures</h2>{duplicates}<div class="figures">{"".join(drawn)}</div>{nearest}'


def calibration_figure(p_values: np.ndarray, smallest_rate: float) -> str:
    """The calibration figure of good images; its caption says in words whether the promise held."""
    verdict = coverage_verdict(p_values, smallest_rate=smallest_rate).explain()
    figure = plot_calibration(p_values, smallest_rate=smallest_rate)
    caption = f"On the images of folders named good, ok or normal. {verdict}"
    return _figure("Calibration", figure, caption, f"Observed false alarms over the rate promised. {verdict}")


def _nearest(scores: Scores, source: Thumbnails, training: ImageSource, lost: dict[str, str]) -> str:
    """The worst places of the worst alarms, each beside the good patch that it is most like."""
    places = {name: i for i, name in enumerate(training.ids)}
    alarms = [] if scores.nearest is None else np.flatnonzero(scores.alarms).tolist()
    known = [i for i in alarms if scores.nearest is not None and scores.nearest[i].train_id in places]
    read, shown = pictures_of(scores, source), []
    for i in sorted(known, key=lambda i: -scores.scores[i])[:_PLACES]:
        assert scores.nearest is not None
        near, name = scores.nearest[i], scores.ids[i]
        try:
            part, good = read(i), training.read(places[near.train_id])
        except UnreadableImageError as error:  # of the two, the one that it names
            lost[name] = str(error)
            continue
        pictures = [
            (marked(part, near.box, _SIDE, FRAME_ALARM), f"{name} with a frame around its worst place"),
            (enlarged(part, near.box, _SIDE, FRAME_ALARM), "That place, enlarged"),
            (enlarged(good, near.train_box, _SIDE, FRAME_GOOD), "The good patch most like it, enlarged"),
            (marked(good, near.train_box, _SIDE, FRAME_GOOD), f"{near.train_id}, good, with a frame around that patch"),
        ]
        images = "".join(
            f'<img alt="{html.escape(said)}" src="{data_uri(as_jpeg(pixels, _SIDE), "jpeg")}">'
            for pixels, said in pictures
        )
        caption = (
            f"{name}, score {scores.scores[i]:.4f}: its worst place, and the good patch most like it, "
            f"of {near.train_id} (distance {near.distance:.3f})."
        )
        shown.append(
            f'<figure class="nearest"><div class="four">{images}</div>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    if not shown:
        return ""
    which = "all of them" if len(shown) == len(alarms) else "those that score highest"
    return (
        f"<h2>Nearest good patches: {len(shown)} of {len(alarms)} alarms</h2><p>Shown are {which}. If the two enlarged "
        f"places look alike to you, the detector has seen too few good parts.</p>{''.join(shown)}"
    )


def _histogram_said(scores: Scores, kinds: Sequence[str]) -> str:
    told = []
    for kind in sorted(set(kinds), key=lambda kind: (not is_good_name(kind), kind)):
        values = scores.scores[[i for i, one in enumerate(kinds) if one == kind]]
        above = int((values > scores.threshold).sum())
        told.append(f"{kind}: {len(values)} from {values.min():.3g} to {values.max():.3g}, {above} above")
    return f"Scores and the threshold {scores.threshold:.3g}. {'; '.join(told)}."


def _counted(names: Sequence[str]) -> str:
    order = sorted(set(names), key=lambda name: (name != TRAINING, not is_good_name(name), name))
    return ", ".join(f"{names.count(name)} {name}" for name in order)


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
    shown = "".join(f"<li>{html.escape(p.second)} and {html.escape(p.first)}</li>" for p in pairs[:_LISTED])
    more = f"<p>and {len(pairs) - _LISTED} more</p>" if len(pairs) > _LISTED else ""
    return (
        "<p>Nearly the same picture here and in training, which makes results look better than they are:</p>"
        f"<ul>{shown}</ul>{more}"
    )


def _figure(name: str, figure: Figure, caption: str, said: str) -> str:
    width, height = figure.get_size_inches()
    if width > _INCHES:
        figure.set_size_inches(_INCHES, height * (_INCHES / width) ** 0.5)
    light, dark = _as_png(figure), _as_png(turned_dark(figure, *_DARK))
    return (
        '<figure class="plot"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{html.escape(said)}" src="{light}"></picture>'
        f"<figcaption>{html.escape(name)}. {html.escape(caption)}</figcaption></figure>"
    )


def _as_png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return data_uri(buffer.getvalue(), "png")
