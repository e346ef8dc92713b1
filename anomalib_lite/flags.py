"""What commands share: flags, text from the command line in and parameters of `Detector` out, and how commands end.

A detector's flag that is not given is not passed on, so the defaults are the library's.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Strict = Annotated[bool, typer.Option("--strict", help="exit with 1 when an image is unreadable")]
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
Weights = Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")]


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


# Name -> (type, option).
DETECTOR_FLAGS: dict[str, Any] = {
    "backbone": (str | None, typer.Option(help="builtin, resnet18, vgg16, inception_v3, … [default: builtin]")),
    "weights": (str | None, typer.Option(help="local weights file (.pth or .safetensors); may be partial")),
    "layers": (str | None, typer.Option(help="layers to combine, comma-separated, or 'penultimate'")),
    "level": (str | None, typer.Option(help="patch (heat maps), global, or both [default: patch]")),
    "quality": (str | None, typer.Option(help="fast, balanced or best [default: balanced]")),
    "image_size": (str | None, typer.Option(help="pixels of the shorter side, or height,width, to resize to")),
    "context": (float | None, typer.Option(help="weight of the picture at half its size; auto: by quality")),
    "tiles": (str | None, typer.Option(help="pixels of a tile, or rows,columns: look closer, tile by tile")),
    "tile_overlap": (
        float | None,
        typer.Option(help="share that neighbouring tiles have in common [default: 0.0]"),
    ),
    "fixture": (float | None, typer.Option(help="lay parts as in a template, turned by so many degrees at most")),
    "roi": (str | None, typer.Option(help="region of interest: mask image, JSON of boxes and polygons, or auto")),
    "ignore": (str | None, typer.Option(help="areas that do not matter: mask image, or JSON of boxes and polygons")),
    "pixel_size": (float | None, typer.Option(help="side of a picture's pixel in millimetres")),
    "vary": (str | None, typer.Option(help="how the camera may vary, such as brightness=0.2,shift=0.02,draws=4")),
    "scorer": (str | None, typer.Option(help="knn, kmeans, dbscan or subspace [default: knn]")),
    "components": (str | None, typer.Option(help="PCA: number, share of variance (0.95), or none")),
    "whiten": (bool | None, typer.Option("--whiten/--no-whiten", help="scale components to unit variance")),
    "bank_size": (int | None, typer.Option(help="knn: vectors in the bank [default: 10000]")),
    "k": (int | None, typer.Option(help="knn: neighbours averaged [default: 2]")),
    "trim": (float | None, typer.Option(help="share of odd training patches that are not learnt from")),
    "n_clusters": (str | None, typer.Option(help="kmeans: number of clusters, or silhouette")),
    "eps": (str | None, typer.Option(help="dbscan: radius, or knee")),
    "min_samples": (int | None, typer.Option(help="dbscan: rows that make a core sample")),
    "false_alarm_rate": (float | None, typer.Option(help="share of good images that may alarm [default: 0.01]")),
    "calibration": (str | None, typer.Option(help="cross, or split: exact, but learns from fewer [default: cross]")),
    "value_range": (str | None, typer.Option(help="values of black and white beyond 8 bits, such as 0,4095; or none")),
    "bits": (int | None, typer.Option(help="bits in use, short for --value-range 0,2^bits-1")),
    "max_pixels": (int | None, typer.Option(help="larger pictures are unreadable [default: 100000000]")),
    "device": (str | None, typer.Option(help="auto, cpu or cuda")),
    "dtype": (str | None, typer.Option(help="auto: the quickest here; or float32, bfloat16, int8")),
    "engine": (str | None, typer.Option(help="what computes int8: auto, onednn or reference")),
    "batch_size": (int | None, typer.Option(help="images per forward pass")),
    "random_state": (int | None, typer.Option(help="seed [default: 0]")),
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


def finish(unreadable: list[Any], strict: bool) -> None:
    """Tell of unreadable images, and exit with 1 for them if asked to."""
    for image in unreadable:
        typer.echo(f"unreadable: {image.reason}", err=True)
    if unreadable and strict:
        raise typer.Exit(1)
