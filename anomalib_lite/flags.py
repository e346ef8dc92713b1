"""What commands share: flags, text from the command line in and parameters of `Detector` out, and how commands end.

A detector's flag that is not given is not passed on, so the defaults are the library's.
"""

import functools
import inspect
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

ALARMS, NO_VERDICTS = 3, 4  # exit codes

Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Strict = Annotated[bool, typer.Option("--strict", help="exit with 1 when an image is unreadable")]
FailOnAlarm = Annotated[bool, typer.Option("--fail-on-alarm", help=f"exit with {ALARMS} when an image alarms")]
DecimalComma = Annotated[
    bool, typer.Option("--decimal-comma", help="CSV for spreadsheets that write 0,5: with semicolons and a BOM")
]
EverythingIsGood = Annotated[
    bool, typer.Option("--everything-is-good", help="learn also what looks like test images or masks by its name")
]
Groups = Annotated[
    str | None,
    typer.Option(help="pictures that belong together: parent (their folder), each (none), or a regular expression"),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda [default: as fitted]")]
Download = Annotated[bool, typer.Option("--download", help="fetch a torchvision backbone's weights if need be")]
MaxPixels = Annotated[int | None, typer.Option(help="larger pictures are unreadable [default: as fitted]")]
Weights = Annotated[
    str | None,
    typer.Option(help="the backbone's weights: a local file or folder, or first for the built-in network's of 0.1"),
]


def _components(text: str) -> int | float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ValueError(f"--components {text}: give a number, a share of variance such as 0.95, or none") from None


def _number_or_word(text: str) -> int | float | str:
    kinds: tuple[type[int], type[float]] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _value_range(text: str) -> tuple[int, int] | str | None:
    if text.lower() in ("none", "auto"):
        return None if text.lower() == "none" else "auto"
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--value-range {text}: give black and white, such as 0,4095, or none, or auto") from None
    return low, high


def _image_size(text: str) -> int | tuple[int, ...]:
    return _one_or_two(text, f"--image-size {text}: give pixels of the shorter side, or height,width")


def _tiles(text: str) -> int | tuple[int, ...]:
    return _one_or_two(text, f"--tiles {text}: give pixels of a tile, or rows,columns")


def _one_or_two(text: str, problem: str) -> int | tuple[int, ...]:
    try:
        numbers = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise ValueError(problem) from None
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _variations(text: str) -> Any:
    from anomalib_lite.images.variations import Variations

    return Variations.parse(text)


# Name -> (type, what it is, its default as told).
_DETECTOR: dict[str, tuple[Any, str, str]] = {
    "backbone": (str, "builtin, resnet18, vgg16, inception_v3, … or several: builtin+resnet18", "builtin"),
    "weights": (
        str,
        "local file (.pth or .safetensors), may be partial; of several a folder",
        "torchvision's, if need be",
    ),
    "layers": (str, "layers to combine, comma-separated, or 'penultimate'", "by backbone"),
    "level": (str, "patch (heat maps), global, or both", "patch"),
    "quality": (str, "fast, balanced or best", "balanced"),
    "image_size": (
        str,
        "pixels of the shorter side, or height,width, to resize to",
        "as many as the camera gave, 384 at most; other backbones have their own",
    ),
    "context": (float, "weight of the picture at half its size; auto: by quality", "auto"),
    "tiles": (str, "pixels of a tile, or rows,columns: look closer, tile by tile", "none"),
    "tile_overlap": (float, "share that neighbouring tiles have in common", "0.0"),
    "fixture": (float, "lay parts as in a template, turned by so many degrees at most", "as they lie"),
    "roi": (str, "region of interest: mask image, JSON of boxes and polygons, or auto", "all"),
    "ignore": (str, "areas that do not matter: mask image, or JSON of boxes and polygons", "none"),
    "pixel_size": (float, "side of a picture's pixel in millimetres", "not known"),
    "vary": (str, "how the camera may vary, such as brightness=0.2,shift=0.02,draws=4", "not"),
    "scorer": (str, "knn, kmeans, dbscan or subspace", "knn"),
    "components": (str, "PCA: number, share of variance (0.95), or none", "auto"),
    "whiten": (bool, "scale components to unit variance", "auto"),
    "bank_size": (int, "knn: vectors in the bank", "10000"),
    "k": (int, "knn: neighbours averaged", "2"),
    "trim": (float, "share of odd training patches that are not learnt from", "0.0"),
    "n_clusters": (str, "kmeans: number of clusters, or silhouette", "auto"),
    "eps": (str, "dbscan: radius, or knee", "knee"),
    "min_samples": (int, "dbscan: rows that make a core sample", "5"),
    "false_alarm_rate": (float, "share of good images that may alarm", "0.01"),
    "calibration": (str, "cross, or split: exact, but learns from fewer", "cross"),
    "value_range": (str, "values of black and white beyond 8 bits, such as 0,4095; or none", "auto"),
    "bits": (int, "bits in use, short for --value-range 0,2^bits-1", "as found"),
    "max_pixels": (int, "larger pictures are unreadable", "100000000"),
    "device": (str, "auto, cpu or cuda", "auto"),
    "dtype": (str, "auto: the quickest here; or float32, bfloat16, int8", "auto"),
    "engine": (str, "what computes int8: auto, onednn or reference", "auto"),
    "batch_size": (int, "images per forward pass", "8"),
    "random_state": (int, "seed", "0"),
}
# Name -> (type, option).
DETECTOR_FLAGS: dict[str, Any] = {
    name: (
        kind | None,
        typer.Option(*(["--whiten/--no-whiten"] if name == "whiten" else []), help=f"{text} [default: {default}]"),
    )
    for name, (kind, text, default) in _DETECTOR.items()
}
_READERS: dict[str, Callable[[str], Any]] = {
    "value_range": _value_range,
    "vary": _variations,
    "image_size": _image_size,
    "tiles": _tiles,
    "components": _components,
    "n_clusters": _number_or_word,
    "eps": _number_or_word,
}
_RENAMED = {"components": "n_components", "vary": "variations"}


def with_detector_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the shared flags to a command, which receives those given as the dict `parameters`."""
    signature = inspect.signature(command)
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
        for name, (kind, option) in DETECTOR_FLAGS.items()
    ]

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in DETECTOR_FLAGS}
        parameters: dict[str, Any] = {}
        for name, value in given.items():
            if value is not None:
                parameters[_RENAMED.get(name, name)] = _READERS[name](value) if name in _READERS else value
        command(parameters=parameters, **arguments)

    own = [parameter for name, parameter in signature.parameters.items() if name != "parameters"]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    wrapped.__signature__ = signature.replace(parameters=[*keywords, *flags])  # type: ignore[attr-defined]
    # typer reads both the signature and the annotations.
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keywords, *flags]}
    return wrapped


def counts(text: str, flag: str) -> list[int]:
    """The numbers of a flag that takes several, none or "none" included."""
    if text.strip().lower() in ("", "none"):
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} {text}: give numbers separated by commas, or none") from None


def loaded(model: Path, weights: str | None, download: bool, device: str | None, max_pixels: int | None) -> Any:
    """The detector in a model file, opened as the flags say."""
    from anomalib_lite.detector import Detector

    return Detector.load(model, weights=weights, download=download, device=device, max_pixels=max_pixels)


def tell(text: str, *, err: bool = False) -> None:
    """Print text; in a terminal its long lines are broken between words, elsewhere a line stays a line."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None and stream.isatty():
        width = shutil.get_terminal_size().columns
        lines = text.split("\n")
        text = "\n".join(line if len(line) < width else _broken(line, width - 1) for line in lines)
    typer.echo(text, err=err)


def _broken(line: str, width: int) -> str:
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def finish(unreadable: list[Any], strict: bool) -> None:
    """Tell of unreadable images, and exit with 1 for them if asked to."""
    for image in unreadable:
        tell(f"unreadable: {image.reason}", err=True)
    if unreadable and strict:
        raise typer.Exit(1)


def finish_scored(scores: Any, strict: bool, fail_on_alarm: bool) -> None:
    """As `finish`; with 4 if nothing could be judged, as of a dead camera, and with 3 for an alarm if asked to."""
    from anomalib_lite.fitted.calibration import NO_VERDICT

    finish(scores.unreadable, strict=False)
    counted = Counter(scores.verdicts)
    counted[NO_VERDICT] = len(scores.unreadable)
    finish_verdicts(counted, strict, fail_on_alarm)


def finish_verdicts(counted: Mapping[str, int], strict: bool, fail_on_alarm: bool) -> None:
    """Exit as `finish_scored` does, by how many images have which verdict."""
    from anomalib_lite.fitted.calibration import ALARM, NO_VERDICT

    lost = counted.get(NO_VERDICT, 0)
    if lost == sum(counted.values()):
        tell(f"error: none of {lost} images can be read: no verdict", err=True)
        raise typer.Exit(NO_VERDICTS)
    if lost and strict:
        raise typer.Exit(1)
    if fail_on_alarm and counted.get(ALARM, 0):
        raise typer.Exit(ALARMS)
