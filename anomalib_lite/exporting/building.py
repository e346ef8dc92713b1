"""The whole graph: from the pixels of a picture of any size to its score, p-value, verdict and anomaly map.

It is a translation of `Detector.score`, step by step in the same order: the frame (`images.framing`), the network and
its pooling (`embedding.embedder`), the search (`scoring`), the image's score (`scoring.aggregation`), calibration
(`fitted.calibration`), and the map (`locating.maps`). Sizes of pictures are known only when it runs; all that depends
on them is computed in the graph.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.exporting.graph import Graph, Name, f32, f64, i64
from anomalib_lite.exporting.network import Embedding, embedded
from anomalib_lite.exporting.resizing import map_weights, resized
from anomalib_lite.exporting.searching import Found, scored
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.proportions import STRETCH
from anomalib_lite.images.region import Region
from anomalib_lite.locating.maps import SMOOTHING
from anomalib_lite.version import __version__

OPSETS = (18, 20)  # the first where means take their axes as an input, and the last that torch's exporter knows
OUTPUTS = (
    "score", "p_value", "verdict", "whole_score", "nearest", "nearest_distance", "patch_scores", "anomaly_map",
)  # fmt: skip
SIZES = ("original_size", "map_size")  # inputs that may be left out
FORMAT = 2  # of the graph's inputs, outputs and metadata
NO_VERDICT, GOOD, LOOK_AGAIN, ALARM = -1, 0, 1, 2
_GROUND = 128  # what stands outside of a region, see `images.region`
_LOWEST = -1e30  # below any score; finite in float32 too, which some runtimes compute in


class _Picture(NamedTuple):
    """What the graph knows of a picture: its pixels, and int64 scalars.

    Where it comes smaller than it is, its own size is (height, width), and that of the pixels (rows, columns).
    Its anomaly map has the size (map_height, map_width).
    """

    pixels: Name
    rows: Name
    columns: Name
    height: Name
    width: Name
    map_height: Name
    map_width: Name


class _Judged(NamedTuple):
    """Scores of patches float64 (gh * gw,), and which of them count: bool, of the same shape, or None for all.

    `rows`, `columns` are int64 scalars of the grid that the picture fills, where it may be a part of it.
    """

    scores: Name
    counts: Name | None
    rows: Name | None
    columns: Name | None


def build(
    fitted: Fitted,
    embedder: Embedder,
    *,
    digest: str,
    opset: int = OPSETS[0],
    pixel_size: float | None = None,
    for_openvino: bool = False,
) -> Any:
    """The graph as an ONNX model.

    Its input is "image", uint8 RGB (H, W, 3); and "original_size", int64 (2,): height and width of a picture whose
    pixels come smaller than it is, by default the size of the pixels; and "map_size", int64 (2,), of the anomaly map,
    by default the size of the picture. Its outputs are among `OUTPUTS`.

    Parameters
    ----------
    fitted, embedder : of a detector; the embedder in float32 or int8
    digest : of the detector
    opset : version of ONNX's operators
    pixel_size : of the detector
    for_openvino : whether OpenVINO is to read it, see `Graph`

    Raises
    ------
    ValueError
        If something of the detector cannot be exported, or the opset lacks an operator.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    check_exportable(fitted, embedder, opset)
    g = Graph(opset, for_openvino=for_openvino)
    frame = embedder.frame if fitted.frame is None else fitted.frame
    shape = g("Shape", "image")
    rows, columns = (g("Gather", shape, i64(axis), axis=0) for axis in (0, 1))
    original = g("Where", g("Greater", "original_size", i64(0)), "original_size", g("Slice", shape, i64([0]), i64([2])))
    map_size = g("Where", g("Greater", "map_size", i64(0)), "map_size", original)
    sides = [g("Gather", size, i64(axis), axis=0) for size in (original, map_size) for axis in (0, 1)]
    picture = _Picture("image", rows, columns, *sides)
    content = _content(g, frame, picture)
    placed = _placed(g, frame, picture, content)  # float32 (h, w, 3)
    found, vector = _embedded_and_searched(g, fitted, embedder, placed, opset)
    judged = _judged(g, fitted, frame, found.scores, content)
    score = _aggregated(g, judged, fitted)
    outputs: dict[str, tuple[Name, int, list[Any]]] = {}
    if fitted.whole is not None:
        assert vector is not None
        whole = scored(g, fitted.whole.scorer, g("Unsqueeze", vector, i64([0])), 1).scores
        whole = g("Squeeze", whole, i64([0]))
        whole = g("Mul", g("Sub", whole, f64(fitted.whole.usual)), f64(fitted.whole.unit))
        whole = g("Add", whole, f64(fitted.whole.usual_patches))
        score = g("Max", score, whole)
        outputs["whole_score"] = whole, TensorProto.DOUBLE, []
    p_value, verdict = _calibrated(g, fitted, score)
    if frame.region is not None:
        fits = _same_proportions(g, frame, picture)
        score, p_value = (g("Where", fits, name, f64(np.nan)) for name in (score, p_value))
        verdict = g("Where", fits, verdict, i64(NO_VERDICT))
    outputs = {
        "score": (score, TensorProto.DOUBLE, []),
        "p_value": (p_value, TensorProto.DOUBLE, []),
        "verdict": (verdict, TensorProto.INT64, []),
        **outputs,
    }
    if fitted.explains and found.nearest is not None and found.distances is not None:
        outputs |= _explained(g, fitted, judged, found)
    if embedder.level == "patch":
        grid, shown = _grids(g, fitted, judged)
        outputs["patch_scores"] = grid, TensorProto.FLOAT, list(fitted.grid)
        outputs["anomaly_map"] = _map(g, fitted, frame, shown, picture, content), TensorProto.FLOAT, ["H", "W"]
    graph = helper.make_graph(
        [*g.nodes, *(helper.make_node("Identity", [name], [known]) for known, (name, _, _) in outputs.items())],
        "anomalib_lite",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3]),
            *(helper.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in SIZES),
        ],
        [helper.make_tensor_value_info(known, kind, axes) for known, (_, kind, axes) in outputs.items()],
        initializer=[
            *(numpy_helper.from_array(i64([0, 0]), name) for name in SIZES),  # an input with a value may be left out
            *(numpy_helper.from_array(values, name) for name, values in g.constants.items()),
        ],
    )
    # 9 is the version of the format that came with opset 20; runtimes refuse later ones than they know.
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="anomalib_lite"
    )
    model.producer_version = __version__
    helper.set_model_props(model, _metadata(fitted, embedder, frame, digest, pixel_size))
    onnx.checker.check_model(model)
    return model


def check_exportable(fitted: Fitted, embedder: Embedder, opset: int = OPSETS[0]) -> None:
    """Raise ValueError where something cannot be exported; the text says what to do instead."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        lacks = (
            "lacks ReduceMean with its axes as an input" if opset < OPSETS[0] else "is not known to torch's exporter"
        )
        raise ValueError(f"opset={opset} {lacks}; choose {OPSETS[0]} to {OPSETS[1]}")
    if fitted.fixture is not None:
        raise ValueError(
            "pictures of this detector are laid by a fixture, which is a search and no graph; fit without fixture= for "
            "parts that lie still, or score with the library"
        )
    if embedder.dtype == "bfloat16":
        raise ValueError(
            "the detector is computed in bf16, which a graph of float32 is no translation of; load it with "
            "Detector.load(path, dtype='float32')"
        )


def _content(g: Graph, frame: Frame, picture: _Picture) -> tuple[Name, Name] | None:
    """Pixels (int64 scalars) of the frame that the picture fills, see `Frame.content`; None where it is always all."""
    if frame.stretches or frame.region is not None:
        return None
    sides = [g.cast(side, np.float64) for side in (picture.height, picture.width)]
    ratios = [g("Div", f64(whole), side) for whole, side in zip(frame.size, sides, strict=True)]
    scale = g("Min", *ratios)
    fits = _same_proportions(g, frame, picture)
    filled = []
    for whole, side in zip(frame.size, sides, strict=True):
        # Round goes to the even number, as Python's does.
        part = g("Min", g("Max", g.cast(g("Round", g("Mul", side, scale)), np.int64), i64(1)), i64(whole))
        filled.append(g("Where", fits, i64(whole), part))
    return filled[0], filled[1]


def _same_proportions(g: Graph, frame: Frame, picture: _Picture) -> Name:
    height, width = (g.cast(side, np.float64) for side in (picture.height, picture.width))
    ratio = g("Div", g("Mul", height, f64(frame.size[1])), g("Mul", width, f64(frame.size[0])))
    return g("LessOrEqual", g("Abs", g("Log", ratio)), f64(np.log1p(STRETCH)))


def _placed(g: Graph, frame: Frame, picture: _Picture, content: tuple[Name, Name] | None) -> Name:
    """The picture in the frame, see `Frame.place`: float32 (h, w, 3)."""
    pixels = picture.pixels
    if frame.region is not None:
        inside = g("GreaterOrEqual", _coverage(g, frame.region, picture.rows, picture.columns), f32(255))
        pixels = g("Where", inside, pixels, np.asarray(_GROUND, dtype=np.uint8))
    size = picture.rows, picture.columns
    if content is None:
        sides = [g.constant(i64(side)) for side in frame.size]
        return resized(g, pixels, size, (sides[0], sides[1]), [g.constant(i64(np.arange(side))) for side in frame.size])
    places = []
    for side, filled in zip(frame.size, content, strict=True):
        # What the picture leaves over mirrors it, again and again: 0 1 2 2 1 0 0 1 ...
        twice = g("Mul", filled, i64(2))
        turned = g("Mod", i64(np.arange(side)), twice)
        back = g("Sub", g("Sub", twice, i64(1)), turned)
        places.append(g("Where", g("Less", turned, filled), turned, back))
    return resized(g, pixels, size, content, places)


def _coverage(g: Graph, region: Region, rows: Name, columns: Name) -> Name:
    """How much of each pixel of a picture of this size lies in a region, of 255: float32 (rows, columns, 1)."""
    drawn = region.mask[:, :, None].astype(np.uint8) * np.uint8(255)
    size = [g.constant(i64(side)) for side in region.size]
    places = [g("Range", i64(0), side, i64(1)) for side in (rows, columns)]
    return resized(g, g.constant(drawn), (size[0], size[1]), (rows, columns), places)


def _embedded_and_searched(
    g: Graph, fitted: Fitted, embedder: Embedder, placed: Name, opset: int
) -> tuple[Found, Name | None]:
    """What the scorer says of all patches of the frame's grid (or of the whole image), and the whole image's vector."""
    module = Embedding(embedder, fitted.reduction, whole=fitted.whole is not None, for_openvino=g.for_openvino)
    embedding = embedded(module, opset)
    own = embedder.own_grid
    n = own[0] * own[1]
    frame = embedder.frame

    def seen(g: Graph, pixels: Name) -> tuple[Found | None, Name | None]:
        parts = dict(zip(module.outputs, embedding(g, pixels), strict=True))
        return (scored(g, fitted.scorer, parts["rows"], n) if "rows" in parts else None), parts.get("vector")

    if not frame.tiled:
        found, vector = seen(g, placed)
    else:
        windows = frame.windows(own)
        body = g.body()
        number = body.new_name("number")
        corners = i64([(window.rows.start, window.columns.start) for window in windows])
        corner = body("Gather", corners, number, axis=0)
        pixels = body("Slice", placed, corner, body("Add", corner, i64(embedder.image_size)), i64([0, 1]))
        inside, vector = seen(body, pixels)
        kept: dict[str, tuple[Name, int]] = {}
        if inside is not None:
            kinds = {"scores": 11, "nearest": 7, "distances": 1}  # of ONNX: float64, int64, float32
            kept = {name: (value, kinds[name]) for name, value in inside._asdict().items() if value is not None}
        if vector is not None:
            kept["vector"] = vector, 1
        stacked = dict(zip(kept, g.loop(len(windows), body, number, kept.values()), strict=True))
        vector = g("ReduceMean", stacked.pop("vector"), i64([0]), keepdims=0) if "vector" in stacked else None
        order = np.zeros(fitted.grid[0] * fitted.grid[1], dtype=np.int64)
        for i, window in enumerate(windows):
            order[window.patches] = i * n + window.own
        laid = {name: g("Gather", g("Reshape", value, i64([-1])), order, axis=0) for name, value in stacked.items()}
        found = Found(**laid) if laid else None
    if found is None:  # at the global level the whole image is the only row
        assert vector is not None
        with torch.no_grad():
            found = scored(g, fitted.scorer, _reduced(g, fitted, g("Unsqueeze", vector, i64([0]))), 1)
    return found, vector


def _reduced(g: Graph, fitted: Fitted, rows: Name) -> Name:
    """Vectors of whole images (1, d), reduced."""
    from anomalib_lite.scoring.reduction import PCA

    reduction = fitted.reduction
    if isinstance(reduction, PCA):
        projection, offset = (part.numpy() for part in reduction.linear)
        return g("Add", g("MatMul", rows, projection), offset)
    return g("Div", g("Sub", rows, f32(reduction.mean_)), f32(reduction.scale_))


def _judged(g: Graph, fitted: Fitted, frame: Frame, scores: Name, content: tuple[Name, Name] | None) -> _Judged:
    """Which patches count, see `Frame.judged`."""
    if fitted.grid == (1, 1):
        return _Judged(scores, None, None, None)
    numbers = np.arange(fitted.grid[0] * fitted.grid[1])
    if frame.region is not None:
        return _Judged(scores, g.constant(np.isin(numbers, frame.region.cells(fitted.grid))), None, None)
    if content is None:
        return _Judged(scores, None, None, None)
    inside = []
    for cells, whole, part in zip(fitted.grid, frame.size, content, strict=True):
        # By the number of pixels filled: cells whose middle lies there, looked up, lest rounding decides.
        middles = (np.arange(cells) + 0.5) * (whole / cells)
        table = np.maximum(1, (middles < np.arange(whole + 1)[:, None]).sum(axis=1))
        inside.append(g("Gather", i64(table), part, axis=0))
    down, right = (
        g("Less", i64(place), n) for place, n in zip(np.divmod(numbers, fitted.grid[1]), inside, strict=True)
    )
    return _Judged(scores, g("And", down, right), inside[0], inside[1])


def _aggregated(g: Graph, judged: _Judged, fitted: Fitted) -> Name:
    """Mean of the largest share of the scores that count, see `scoring.aggregation.image_score`: float64 scalar."""
    most = fitted.grid[0] * fitted.grid[1]
    masked = judged.scores if judged.counts is None else g("Where", judged.counts, judged.scores, f64(_LOWEST))
    # By the number that counts: how many are averaged, looked up, lest rounding decides.
    table = np.array([max(1, int(n * fitted.top_share)) for n in range(most + 1)])
    if judged.counts is None:
        count = g.constant(i64(table[most]))
    else:
        count = g("ReduceSum", g.cast(judged.counts, np.int64), i64([0]), keepdims=0)
        count = g("Gather", i64(table), count, axis=0)
    largest, _ = g.several("TopK", 2, masked, i64([table[most]]), axis=0, largest=1)
    averaged = g("Where", g("Less", i64(np.arange(table[most])), count), largest, f64(0.0))
    return g("Div", g("ReduceSum", averaged, i64([0]), keepdims=0), g.cast(count, np.float64))


def _calibrated(g: Graph, fitted: Fitted, score: Name) -> tuple[Name, Name]:
    """p-value float64 and verdict int64, see `fitted.calibration`."""
    calibration = fitted.calibration
    as_high = g("GreaterOrEqual", f64(calibration.known_), score)
    as_high = g.cast(g("ReduceSum", g.cast(as_high, np.int64), i64([0]), keepdims=0), np.float64)
    p_value = g("Div", g("Add", as_high, f64(1.0)), f64(calibration.n + 1))
    lower = calibration.threshold if calibration.look_again is None else calibration.look_again
    verdict = g("Where", g("Greater", score, f64(lower)), i64(LOOK_AGAIN), i64(GOOD))
    return p_value, g("Where", g("Greater", score, f64(calibration.threshold)), i64(ALARM), verdict)


def _explained(g: Graph, fitted: Fitted, judged: _Judged, found: Found) -> dict[str, tuple[Name, int, list[Any]]]:
    """What the worst patch is most like, see `Fitted.score`.

    "nearest" is int64 (5,): the patch, the training image and its patch, that image's height and width.
    """
    masked = judged.scores if judged.counts is None else g("Where", judged.counts, judged.scores, f64(_LOWEST))
    assert found.nearest is not None
    assert found.distances is not None
    worst = g("ArgMax", masked, axis=0, keepdims=0)
    row = g("Gather", found.nearest, worst, axis=0)
    image_and_patch = g("Gather", i64(fitted.origins), row, axis=0)  # (2,)
    image = g("Gather", image_and_patch, i64(0), axis=0)
    size = g("Gather", i64(fitted.train.sizes), image, axis=0)
    nearest = g("Concat", g("Unsqueeze", worst, i64([0])), image_and_patch, size, axis=0)
    distance = g.cast(g("Gather", found.distances, worst, axis=0), np.float64)
    return {"nearest": (nearest, 7, [5]), "nearest_distance": (distance, 11, [])}


def _grids(g: Graph, fitted: Fitted, judged: _Judged) -> tuple[Name, Name]:
    """Patch scores float32 (gh, gw), NaN where they do not count; and the same, filled by the nearest that do."""
    shape = i64(fitted.grid)
    grid = g("Reshape", g.cast(judged.scores, np.float32), shape)
    if judged.counts is None:
        return grid, grid
    counts = g("Reshape", judged.counts, shape)
    told = g("Where", counts, grid, f32(np.nan))
    if judged.rows is None or judged.columns is None:  # a region, the same for every picture
        mask = g.constants[judged.counts].reshape(fitted.grid)
        nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
        numbers = nearest[0] * fitted.grid[1] + nearest[1]
        return told, g("Gather", g("Reshape", grid, i64([-1])), i64(numbers), axis=0)
    # Of a rectangle in the corner, the nearest cell is in the last row and column at most.
    for axis, filled in ((0, judged.rows), (1, judged.columns)):
        grid = g("Gather", grid, g("Min", i64(np.arange(fitted.grid[axis])), g("Sub", filled, i64(1))), axis=axis)
    return told, grid


def _map(
    g: Graph, fitted: Fitted, frame: Frame, grid: Name, picture: _Picture, content: tuple[Name, Name] | None
) -> Name:
    """The anomaly map float32 (H, W), see `locating.maps`."""
    weights = []
    for axis, shown in enumerate((picture.map_height, picture.map_width)):
        canvas = shown
        if content is not None:
            whole = g("Mul", g.cast(shown, np.float64), f64(frame.size[axis]))
            canvas = g.cast(g("Round", g("Div", whole, g.cast(content[axis], np.float64))), np.int64)
        weights.append(map_weights(g, fitted.grid[axis], canvas, shown, SMOOTHING))
    found = g("MatMul", weights[0], g("MatMul", grid, g("Transpose", weights[1], perm=[1, 0])))
    if frame.region is None:
        return found
    inside = g("Squeeze", _coverage(g, frame.region, picture.map_height, picture.map_width), i64([2]))
    return g("Where", g("GreaterOrEqual", inside, f32(128)), found, f32(0.0))


def _metadata(
    fitted: Fitted, embedder: Embedder, frame: Frame, digest: str, pixel_size: float | None
) -> dict[str, str]:
    """What a program that runs the graph may want to know, as text."""
    calibration = fitted.calibration
    told = {
        "version": __version__,
        "model": digest,
        "threshold": calibration.threshold,
        "look_again": calibration.look_again,
        "false_alarm_rate": calibration.false_alarm_rate,
        "guarantee_met": calibration.guarantee_met,
        "calibration_groups": calibration.n,
        "pixel_threshold": None if fitted.peaks is None else fitted.peaks.threshold,
        "usual_score": fitted.usual_score,
        "pixel_size": pixel_size,
        "value_range": None if fitted.value_range is None else list(fitted.value_range),
        "max_pixels": fitted.parameters.get("max_pixels"),
        "grid": list(fitted.grid),
        "frame": frame.to_dict(),
        "dtype": embedder.dtype,
        "parameters": dict(fitted.parameters),
    }
    if fitted.explains:
        told["train_ids"] = list(fitted.train.ids)
    values = {name: json.dumps(value, default=str) for name, value in told.items()}
    return {"anomalib_lite": str(FORMAT), **values}
