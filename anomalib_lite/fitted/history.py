"""When a threshold was set, and from what: written down in the core, and so in the model file."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from anomalib_lite.fitted.calibration import Calibration


@dataclass(frozen=True)
class Record:
    """One time that a threshold was set.

    Attributes
    ----------
    date : ISO 8601, in UTC
    how : "fit", "replace" or "extend" (by fresh good images), "add" or "remove" (of images learnt from), "rate" or
        "threshold" (by hand)
    n_images, n_groups : that the threshold rests on by then
    ids : SHA-256 of the ids of the images that were added, one per line
    false_alarm_rate, threshold : that were set
    """

    date: str
    how: str
    n_images: int
    n_groups: int
    ids: str
    false_alarm_rate: float
    threshold: float

    @classmethod
    def of(cls, how: str, calibration: Calibration, ids: Sequence[str] = ()) -> Record:
        """Of what has just been set."""
        return cls(
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            how=how,
            n_images=calibration.n_images,
            n_groups=calibration.n,
            ids=hashlib.sha256("\n".join(ids).encode("utf-8", "surrogateescape")).hexdigest(),
            false_alarm_rate=calibration.false_alarm_rate,
            threshold=calibration.threshold,
        )

    @classmethod
    def read(cls, values: Any) -> Record:
        """From what `asdict` made of one, out of a file; raises an error of any kind if it is none."""
        names = {entry.name: {"int": int, "str": str, "float": float}[str(entry.type)] for entry in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names.keys():
            raise ValueError(f"a record of a calibration is malformed: {values!r:.80}")
        return cls(**{name: kind(values[name]) for name, kind in names.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)
