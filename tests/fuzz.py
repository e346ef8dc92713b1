"""Damage pictures and model files at random, seeded, and see that nothing but the documented errors comes of it.

    python tests/fuzz.py --pictures 10000 --models 2000

Every case runs in a worker process that is watched from outside: a case that raises anything else, takes longer than
5 seconds or brings the worker above 1.5 GB is printed with its number, and `--case picture:17` runs it again alone.
`tests/test_fuzz.py` runs a small part of it.
"""

import argparse
import functools
import io
import json
import multiprocessing
import random
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SECONDS = 5.0
BYTES = 1.5e9
CHUNK = 100  # cases per worker
NUMBERS = [-1, 0, 1, 2, 10**30, -(10**30), 2**31, 2**63, 1e308, 0.5]
EXTREMES = [*NUMBERS, "", "x", "cuda", None, True, [], {}, [1e9] * 3, "a" * 9999]


# ---------------------------------------------------------------- pictures


@functools.cache
def pictures():
    """Whole pictures of every format and kind, encoded."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    colour = Image.fromarray(np.stack([ramp, ramp.T.copy().reshape(48, 64), 255 - ramp], axis=2))
    noise = Image.fromarray(rng.integers(0, 255, (40, 52, 3), dtype=np.uint8))
    deep = Image.fromarray(ramp.astype(np.uint16) * 250)
    found = []
    for image, kind, options in [
        (colour, "PNG", {}),
        (colour.convert("RGBA"), "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (noise, "JPEG", {}),
        (colour, "JPEG", {"progressive": True, "quality": 95}),
        (colour.convert("L"), "JPEG", {}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "BMP", {}),
        (colour.convert("P"), "BMP", {}),
        (colour, "TIFF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (colour, "TIFF", {"save_all": True, "append_images": [noise.copy()]}),
        (colour.convert("F"), "TIFF", {}),
        (colour, "WEBP", {}),
        (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        (colour, "PPM", {}),
        (deep, "PPM", {}),
    ]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    text = " ".join(map(str, ramp.ravel().tolist()))
    found.append(f"P2\n64 48\n255\n{text}\n".encode())
    found.append(f"P3\n16 16\n255\n{text[:2000]}\n".encode())
    pixels = bytes([3, 7, 0, 0] * 40 + [0, 1])
    rle = struct.pack("<2sIHHI", b"BM", 1078 + len(pixels), 0, 0, 1078)
    rle += struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 8, 1, len(pixels), 0, 0, 256, 0) + bytes(1024) + pixels
    found.append(rle)
    return found


def damaged(content, others, rng):
    """The bytes with something wrong: flipped, cut, repeated, replaced by extremes, or joined with another file's."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(max(1, len(data))) if rng.random() < 0.5 else rng.randrange(max(1, min(len(data), 128)))
        what = rng.randrange(8)
        if what == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + 1] = rng.randbytes(rng.randrange(1, 9))
        elif what == 2:
            del data[at : at + rng.randrange(1, 200)]
        elif what == 3:
            del data[at:]
        elif what == 4:
            data[at:at] = data[at : at + rng.randrange(1, 400)] * rng.choice([1, 2, 50])
        elif what == 5:
            value = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000, 200_000, 100_000_000])
            order = rng.choice("<>")
            packed = struct.pack(f"{order}{'I' if value > 0xFFFF or rng.random() < 0.5 else 'H'}", value)
            data[at : at + len(packed)] = packed
        elif what == 6:
            other = rng.choice(others)
            data[at:] = other[min(at, len(other)) :]
        else:
            data[at : at + 4] = str(rng.choice([0, -1, 99999, 10**12])).encode()
    return bytes(data)


def read_picture(number, folder):
    from anomalib_lite.images import UnreadableImageError, open_source

    rng = random.Random(number)
    whole = pictures()
    content = damaged(rng.choice(whole), whole, rng)
    if number % 2:
        path = folder / f"picture.{rng.choice(['png', 'jpg', 'bmp', 'tif', 'webp', 'ppm'])}"
        path.write_bytes(content)
        source = open_source([path])
    else:
        source = open_source([content])
    try:
        pixels = source.read(0)
    except UnreadableImageError as error:
        return f"unreadable: {str(error)[:80]}"
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 3, pixels.shape
    return "read"


# ---------------------------------------------------------------- model files


def models(folder):
    """Whole model files of every kind, by name; made once."""
    from anomalib_lite import Classifier, Detector, Segmenter, Variations, make_metal_nut
    from anomalib_lite.images.synthetic import render_part

    parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(16)]
    for scorer in ("knn", "kmeans", "dbscan", "subspace"):
        for level in ("patch", "global"):
            detector = Detector(scorer=scorer, level=level, image_size=64, n_clusters=8, bank_size=64).fit(parts)
            detector.save(folder / f"detector-{scorer}-{level}.safetensors")
    own = Detector(backbone="squeezenet1_1", layers="features.4", weights="random", image_size=64, bank_size=64)
    own.fit(parts).save(folder / "detector-own.safetensors", include_backbone=True)
    moved = Detector(image_size=64, bank_size=64, variations=Variations(mirror=True, draws=1), calibration="split")
    moved = moved.fit(parts, groups=[i // 2 for i in range(16)]).recalibrate(parts[:6], mode="extend", groups="each")
    moved.at_threshold(1.0, look_again=0.5).save(folder / "detector-moved.safetensors")
    data = make_metal_nut(folder / "set", n_train=6, n_good=4, n_defect=3, size=64)
    for name in ("linear", "bottleneck", "cnn"):
        classifier = Classifier(name, image_size=64, epochs=1).fit(data, target="defective")
        classifier.save(folder / f"classifier-{name}.safetensors")
    Segmenter(depth=2, width=4, image_size=64, epochs=1).fit(data).save(folder / "segmenter.safetensors")
    return sorted(folder.glob("*.safetensors"))


def changed(value, rng):
    """A JSON value with one place in it replaced, taken away or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {other: kept for other, kept in value.items() if other != key}
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(EXTREMES)


def bent(array, rng):
    """An array with its values, shape or type changed."""
    array = np.array(array)
    what = rng.randrange(9)
    with np.errstate(all="ignore"):
        if what == 0 and array.size and array.dtype.kind == "f":
            array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e38])
        elif what == 1:
            array = array * array.dtype.type(rng.choice([0, -1, 3]))
        elif what == 2 and array.dtype.kind == "f":
            array = array * array.dtype.type(rng.choice([1e30, 1e-30, 1e12]))
        elif what == 3:
            array = array[: len(array) // 2] if array.ndim else array.reshape(1)
        elif what == 4:
            array = np.concatenate([array, array]) if array.ndim else array
        elif what == 5:
            array = array.reshape(-1)
        elif what == 6:
            array = array.T.copy()
        elif what == 7:
            array = array.astype(rng.choice([np.int8, np.float16, np.float64, bool, np.uint8]))
        else:
            array = np.atleast_1d(array)[:0]
    return np.ascontiguousarray(array)


def load_model(number, folder):
    from safetensors import safe_open
    from safetensors.numpy import save

    from anomalib_lite import Classifier, Detector, ModelFileError, Segmenter, WeightsError
    from anomalib_lite.files import model_file

    rng = random.Random(number)
    paths = sorted(folder.glob("*.safetensors"))
    chosen = rng.choice(paths)
    path = folder / "damaged" / "model.safetensors"
    path.parent.mkdir(exist_ok=True)
    if number % 4 == 0:
        path.write_bytes(damaged(chosen.read_bytes(), [other.read_bytes() for other in paths], rng))
    else:
        with safe_open(chosen, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            manifest = json.loads(file.metadata()["manifest"])
        for _ in range(rng.choice([1, 1, 2, 3])):
            if rng.random() < 0.5 and arrays:
                key = rng.choice(sorted(arrays))
                arrays[key] = bent(arrays[key], rng)
                if rng.random() < 0.1:
                    del arrays[key]
            else:
                manifest = changed(manifest, rng)
        header = json.dumps(manifest)
        # As a stranger would: the checksum is made to fit again.
        checksum = model_file._checksum(header, arrays) if rng.random() < 0.95 else "0"
        path.write_bytes(save(arrays, {"manifest": header, "sha256": checksum}))
    kinds = {"detector": Detector, "classifier": Classifier, "segmenter": Segmenter}
    kind = kinds[chosen.name.split(".")[0].split("-")[0]]
    pixels = np.full((64, 64, 3), 90, dtype=np.uint8)
    pixels[20:30, 20:40] = 200
    try:
        model = kind.load(path)
    except (ModelFileError, WeightsError) as error:
        return f"refused: {str(error)[:80]}"
    if kind is Detector:
        scores = model.score([pixels])
        assert np.isfinite(scores.scores).all(), scores.scores
        assert np.isfinite(scores.threshold)
        assert len(scores.verdicts) == 1
        assert scores.p_text(0)
        extended = model.recalibrate([pixels], mode="extend")
        assert np.isfinite(extended.at_rate(0.3, look_again=0.5).score([pixels]).p_values).all()
        assert extended.fitted_.calibration.explain()
        if scores.patch_scores is not None:
            assert scores.anomaly_map(0).shape == (64, 64)
    else:
        model.predict([pixels])
    return "loaded"


# ---------------------------------------------------------------- running them


def work(kind, numbers, folder, channel):
    """Run cases one by one and tell of each; in a process of its own."""
    import warnings

    warnings.simplefilter("ignore")
    try:
        import torch

        torch.set_num_threads(1)
    except ImportError:
        pass
    case = {"picture": read_picture, "model": load_model}[kind]
    if kind == "model":  # what is loaded once is no case's fault
        from anomalib_lite import Detector

        own = Detector.load(Path(folder) / "detector-own.safetensors")
        own.score([np.zeros((64, 64, 3), dtype=np.uint8)])
    for number in numbers:
        channel.send((number, "begun", 0.0, 0))
        start = time.perf_counter()
        try:
            outcome = case(number, Path(folder))
        except BaseException as error:
            outcome = f"RAISED {type(error).__name__}: {error}"
        channel.send((number, outcome, time.perf_counter() - start, peak_bytes()))
    channel.close()


def peak_bytes():
    from anomalib_lite.machine.memory import peak_rss_mb

    return (peak_rss_mb() or 0) * 1e6


def run(kind, numbers, folder, report):
    """Cases in workers, each watched; returns the faults and counts of outcomes."""
    context = multiprocessing.get_context("spawn")
    faults, counts, slowest = [], {}, (0.0, None)
    numbers = list(numbers)
    while numbers:
        here, there = context.Pipe(duplex=False)
        chunk = numbers[:CHUNK]
        worker = context.Process(target=work, args=(kind, chunk, str(folder), there))
        worker.start()
        there.close()
        current, grown = None, False
        while True:
            # The first case of a worker imports what it needs; cases that have begun have so many seconds.
            if not here.poll(SECONDS if current is not None else 180):
                faults.append((kind, current, f"HANGS for more than {SECONDS} s"))
                break
            try:
                number, outcome, seconds, peak = here.recv()
            except EOFError:
                if current is not None:
                    faults.append((kind, current, "KILLED its process"))
                break
            if outcome == "begun":
                current = number
                continue
            current = None
            numbers.remove(number)
            counts[outcome.split(":")[0]] = counts.get(outcome.split(":")[0], 0) + 1
            slowest = max(slowest, (seconds, number), key=lambda pair: pair[0])
            if outcome.startswith("RAISED") or seconds > SECONDS or (peak > BYTES and not grown):
                faults.append((kind, number, f"{outcome} ({seconds:.1f} s, {peak / 1e9:.2f} GB)"))
            if peak > BYTES:
                grown = True
                break
        worker.kill()
        worker.join()
        if current is not None and current in numbers:
            numbers.remove(current)
        for fault in faults[report["shown"] :]:
            print(*fault, flush=True)
        report["shown"] = len(faults)
    print(f"{kind}s: {counts}, slowest {slowest[0]:.2f} s (number {slowest[1]})", flush=True)
    return faults


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="one case again, such as picture:17, with its traceback")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.models or (options.case or "").startswith("model"):
            models(folder)
        if options.case:
            kind, number = options.case.split(":")
            print({"picture": read_picture, "model": load_model}[kind](int(number), folder))
            return 0
        first = options.seed * 1_000_000
        faults = run("picture", range(first, first + options.pictures), folder, {"shown": 0})
        faults += run("model", range(first, first + options.models), folder, {"shown": 0})
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
