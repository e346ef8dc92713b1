"""From good images to a fitted core, and the embedder that is bound to it: opened, laid, embedded, learnt."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from anomalib_lite.detecting.laying import choose_fixture, frame_for
from anomalib_lite.detecting.making import Templates
from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.detecting.quality import PARTS, SURFACES, Usual
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import EmbeddedImage, EmbeddedSource, OnUnreadable, embed_source
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.duplicates import describe_groups
from anomalib_lite.fitted.fitting import fit_patches
from anomalib_lite.fitted.groups import Groups, group_numbers
from anomalib_lite.fitted.plan import EMBEDDING, EmbedElsewhere, Plan, stages
from anomalib_lite.fitted.vectors import fit_global
from anomalib_lite.fitted.whole import BOTH
from anomalib_lite.images.fixture import RegisteredSource
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.region import Region
from anomalib_lite.images.sight import SightingSource
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.texture import is_surface
from anomalib_lite.images.training import open_training
from anomalib_lite.images.variations import VariedSource
from anomalib_lite.machine.progress import work
from anomalib_lite.scaling.chunks import Engine, engine_in_force
from anomalib_lite.scaling.embedding import embed_elsewhere


def learn(
    images: Any,
    parameters: Parameters,
    templates: Templates,
    *,
    region: Region | None,
    groups: Groups | None,
    on_unreadable: OnUnreadable,
    everything_is_good: bool,
) -> tuple[Fitted, Embedder]:
    """Learn from good images; see `Detector.fit`, also for what is raised and warned of.

    Parameters
    ----------
    region : the region of interest of a model from a file, which stays; None: it is made as the parameters say
    """
    given, reading = open_training(
        images,
        parameters.reading,
        guess_range=parameters.stored_range == "auto",
        everything_is_good=everything_is_good,
        variations=parameters.variations,
        random_state=parameters.random_state,
        workers=parameters.workers,
    )
    copies = given.copies if isinstance(given, VariedSource) else 1
    numbers = None if groups is None else group_numbers(groups, given.ids[::copies])
    usual = _usual(given, parameters, templates.embedder)
    fixture = choose_fixture(given, parameters.turn)
    sighting = None if isinstance(given, EmbeddedSource) else SightingSource(given)
    source: ImageSource = given
    if sighting is not None:
        source = sighting if fixture is None else RegisteredSource(sighting, fixture)
    frame = frame_for(given, source, parameters, templates.embedder, region)
    embedder = templates.embedder.uncalibrated().framed(frame)
    if parameters.context == "auto":
        embedder = embedder.with_context(usual.context)
    if isinstance(source, EmbeddedSource):  # it keeps embeddings for others too, who were calibrated otherwise
        if parameters.dtype == "int8":
            raise ValueError("a source that keeps embeddings is not for dtype='int8'; choose 'float32' or 'auto'")
        embedder = embedder.in_floats()
    engine = None if isinstance(source, EmbeddedSource) else engine_in_force()
    # What is read again is read to calibrate, which is a stage of its own.
    passes = iter([EMBEDDING] if engine is None else [EMBEDDING, EMBEDDING])

    def embed(indices: np.ndarray) -> Iterator[EmbeddedImage | UnreadableImage]:
        return embed_source(
            embedder,
            source,
            indices,
            on_unreadable=on_unreadable,
            workers=parameters.workers,
            progress=next(passes, None),
        )

    def embed_there(engine: Engine) -> EmbedElsewhere:
        return lambda indices, reduction: embed_elsewhere(
            engine,
            embedder,
            source,
            indices,
            reduction,
            on_unreadable=on_unreadable,
            workers=parameters.workers,
            progress=next(passes, None),
        )

    plan = Plan(
        make_reduction=templates.new_reduction,
        make_scorer=templates.new_scorer,
        selection=templates.new_selection(),
        false_alarm_rate=parameters.false_alarm_rate,
        top_share=usual.top_share if parameters.top_share is None else parameters.top_share,
        calibration=parameters.calibration,
        calibration_images=parameters.calibration_images,
        groups=numbers,
        random_state=parameters.random_state,
        copies=copies,
        whole=parameters.level == BOTH,
        value_range=reading.value_range,
        frame=embedder.frame,
        fixture=fixture,
        poses=source.turns_and_shifts if isinstance(source, RegisteredSource) else None,
        parameters=parameters.stored(),
        embedder=lambda: {**embedder.describe(), "ranges": embedder.ranges},
        elsewhere=None if engine is None else embed_there(engine),
    )
    with work(parameters.progress, *stages(templates.scorer, embedder.level)):
        core = (fit_patches if embedder.level == "patch" else fit_global)(embed, source.ids, plan)
    core = replace(core, sight=None if sighting is None else sighting.sight)
    if groups is None:
        _warn_of_groups(core)
    _warn_of_notes(getattr(given, "notes", {}))
    return core, embedder


def _usual(source: ImageSource, parameters: Parameters, embedder: Embedder) -> Usual:
    """What stands where nothing is chosen, by what the images show where the quality asks for a look."""
    looks = parameters.quality == "best" and embedder.level == "patch" and not isinstance(source, EmbeddedSource)
    return SURFACES if looks and is_surface(source, workers=parameters.workers) else PARTS


def _warn_of_groups(core: Fitted) -> None:
    if withheld := core.calibration.withheld:
        warnings.warn(
            f"{withheld}, so no false-alarm rate can be promised; say which pictures belong together (groups=), or "
            "fit each alone if these are products that differ",
            stacklevel=4,  # of `Detector.fit`
        )
    elif found := describe_groups(core.train.groups):
        warnings.warn(
            f"{found}; such pictures are left out together and count as one. Say groups='each' if they are of "
            "different parts",
            stacklevel=4,
        )


def _warn_of_notes(notes: dict[str, str]) -> None:
    if notes:
        named = "; ".join(f"{name}: {text}" for name, text in sorted(notes.items())[:3])
        warnings.warn(f"{len(notes)} training images are not wholly shown: {named}", stacklevel=4)
