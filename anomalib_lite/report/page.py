"""One self-contained HTML page about a set of scored images: no network, no other files, thousands of images.

`page.html` is what is always there, `page.css` and `page.js` (with `zoom.*`, which the server's page has too) how it
looks and acts; this module fills them. Whatever comes from file names is escaped, so that a name cannot become markup
or script. An image that has gone since it was scored keeps its line, and the reason stands in it.
"""

from __future__ import annotations

import datetime
import html
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from anomalib_lite.detector import Detector
from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.fitted.calibration import LOOK_AGAIN
from anomalib_lite.fitted.drift import tied_share, watch
from anomalib_lite.images.mvtec import is_good_name
from anomalib_lite.machine.progress import DRAWING, stage
from anomalib_lite.plotting.overlays import COLOURS
from anomalib_lite.report.figures import figures
from anomalib_lite.report.pictures import Thumbnails, heat_maps, outlines, small_pictures
from anomalib_lite.report.rows import by_score, filters, kinds_of, layered, table_rows
from anomalib_lite.results import Scores

_HERE = Path(__file__).parent
_PACKAGES = ("anomalib_lite", "torch", "torchvision", "numpy", "scikit-learn", "pillow")


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
    kinds = kinds_of([*scores.ids, *(entry.id for entry in scores.unreadable)])
    lost: dict[str, str] = {}
    # Figures first: what they read leaves its small picture behind, and is not decoded again.
    with stage(DRAWING, 2, "parts") as step:
        drawn = figures(detector, scores, kinds[: len(scores)], source, training, lost)
        step()
        pictures, heat, lines = small_pictures(scores, source, lost), heat_maps(scores), outlines(scores)
        step()
    page = _filled(
        _read("page.html"),
        {
            "title": html.escape(_verdict(scores)),
            "style": _read("zoom.css") + _read("page.css"),
            "maps": "maps" if heat else "no-maps",
            "verdict": "alarm" if scores.alarms.any() else "good",
            "made": html.escape(_made(detector)),
            "warnings": _warnings(scores, lost),
            "worst": _worst(scores, pictures, heat, lines),
            "summary": _summary(detector, scores),
            "tiles": _tiles(scores),
            "filters": filters(scores, kinds),
            "legend": _legend(),
            "rows": table_rows(scores, kinds, pictures, heat, lines, lost),
            "figures": drawn,
            "settings": _settings(detector),
            # One module: a page without other files imports nothing.
            "script": _read("zoom.js").replace("export function", "function") + _read("page.js"),
        },
    )
    return write_atomically(Path(path), page.encode("utf-8", errors="backslashreplace"))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _filled(template: str, parts: dict[str, str]) -> str:
    """The template with every @@name@@ replaced, in one go, so that no part is searched for names."""
    pieces = template.split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _made(detector: Detector) -> str:
    moment = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"Made {moment} by anomalib_lite; detector fitted on {detector.n_train_} good images."


def _verdict(scores: Scores) -> str:
    alarms, images = int(scores.alarms.sum()), f"{len(scores)} image{'s' * (len(scores) > 1)}"
    return f"{alarms or 'None'} of {images} alarm{'s' * (alarms < 2)}"


def _warnings(scores: Scores, lost: Mapping[str, str]) -> str:
    """What is not as it should be, with a number each; the lines of the table say more."""
    again = scores.verdicts.count(LOOK_AGAIN)
    counts = [
        (
            len(scores.unreadable),
            "{} image could not be read: it has no verdict.",
            "{} images could not be read: they have no verdict.",
        ),
        (
            len(lost),
            "{} has gone or changed since it was scored: it has no picture.",
            "{} have gone or changed since they were scored: they have no picture.",
        ),
        (
            len(scores.notes),
            "{} has a remark in its line of the table.",
            "{} have remarks in their lines of the table.",
        ),
    ]  # fmt: skip
    told = [(one if count == 1 else many).format(count) for count, one, many in counts if count]
    first = f'<p class="warning look-again">{again} to be looked at again.</p>' if again else ""
    return first + "".join(f'<p class="warning no-verdict">{text}</p>' for text in told)


def _worst(scores: Scores, pictures: Mapping[int, bytes], heat: Sequence[bytes], lines: Mapping[int, str]) -> str:
    """The picture with the highest score of those that are there, plain and with its heat map and outlines."""
    if not pictures:
        return ""
    i = max(pictures, key=lambda i: (scores.scores[i], -i))
    name, verdict = scores.ids[i], scores.verdicts[i]
    shown = layered(pictures[i], None, f"{name}: {verdict}")
    if heat:
        shown += layered(pictures[i], heat[i], f"{name} with its heat map", lines.get(i, ""))
    position = by_score(scores).index(i)
    return (
        f'<figure id="worst"><button type="button" class="open" data-row="{position}">{shown}</button>'
        f'<figcaption>The highest score: <span class="name">{html.escape(name)}</span>, {scores.scores[i]:.4f}, '
        f'<b class="{verdict.replace(" ", "-")}">{verdict}</b></figcaption></figure>'
    )


def _tiles(scores: Scores) -> str:
    entries = [
        (str(len(scores)), "images scored"),
        (str(int(scores.alarms.sum())), "alarms"),
        (f"{scores.threshold:.4g}", "alarm threshold"),
        (f"{100 * scores.false_alarm_rate:.3g} %", "of good ones may alarm"),
        (str(len(scores.unreadable)), "unreadable"),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for value, name in entries)


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
    region = None if scores.frame is None else scores.frame.region
    if region is not None:
        paragraphs.append(
            f"Region of interest: {100 * region.share:.3g} % of every picture is looked at. What lies outside is dark "
            "in the heat maps and changes no score; a defect there is not found."
        )
    # A number and its unit stay on one line.
    return "".join(f"<p>{html.escape(text.replace(' %', chr(0xA0) + '%'))}</p>" for text in paragraphs)


def _legend() -> str:
    """The colours of the heat maps, from good to defective."""
    colours = (255 * colormaps[COLOURS](np.linspace(0.2, 1, 9))[:, :3]).astype(int)
    steps = ", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in colours)
    return (
        '<p id="legend">Heat maps: what is like the good ones is left as it is; what is unlike them is painted, '
        f'<span class="scale" style="background: linear-gradient(to right, {steps})"></span> '
        "the lighter the more. One scale for all images. A blue line goes around what is unlike the good ones in "
        "a picture that is not good.</p>"
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
        f"<div><dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd></div>"
        for key, value in settings.items()
    )
