"""Beyond one process: two Dask and two Ray workers beside one, workers that are killed, and many images into Parquet.

    python benchmarks/scale.py speed                  # images per second, here and by two workers; one killed midway
    python benchmarks/scale.py parquet --images 20000 # scored into Parquet, killed ten times; rows and peak memory
    python benchmarks/scale.py fit --images 20000     # time of a fit against the number of images, and its slope
    python benchmarks/scale.py search                 # exact search in large banks, beside faiss; with --data SET
                                                      # in patch rows of real pictures

Everything is drawn. Workers compute by one thread each. Set OMP_NUM_THREADS=1 for figures of one thread here too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.machine.memory import peak_rss_mb
from anomalib_lite.scaling.chunks import Packed


def draw(folder: Path, images: int, size: int, different: int = 400) -> Path:
    """Parts as PNGs; noise of its own makes each of the `different` drawn ones a new picture again and again."""
    folder.mkdir(parents=True)
    parts = [render_part(np.random.default_rng(i), size)[0] for i in range(min(images, different))]
    for number in range(images):
        noise = np.random.default_rng(number).integers(-3, 4, (size, size, 1))
        pixels = np.clip(parts[number % len(parts)] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)
    return folder


def timed(work) -> tuple[float, object]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def speed(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = draw(Path(name) / "parts", arguments.images, 256)
        detector = Detector(image_size=256, workers=0, dtype=arguments.dtype).fit(sorted(folder.iterdir())[:40])
        detector.score(folder)
        before = processor_seconds([os.getpid()])
        alone, expected = timed(lambda: detector.score(folder))
        spent = 1000 * (processor_seconds([os.getpid()]) - before) / arguments.images
        table("here, one process", alone, arguments.images, alone, spent)
        for engine in (dask_workers, ray_workers):
            with engine(2) as backend, joblib.parallel_config(backend=backend, n_jobs=2):
                detector.score(folder)  # every worker unpacks the network, and lays it out
                before = processor_seconds(workers_of(backend))
                seconds, found = timed(lambda: detector.score(folder))
                spent = 1000 * (processor_seconds(workers_of(backend)) - before) / arguments.images
                same = np.abs(found.scores / expected.scores - 1).max()
                table(f"2 workers of {backend}", seconds, arguments.images, alone, spent, f"scores within {same:.1e}")
                if arguments.no_kill:
                    continue
                seconds, found = timed(lambda e=backend: killed_midway(detector, folder, e, alone / 4))
                same = np.abs(found.scores / expected.scores - 1).max()
                more = f"{len(found)} images, scores within {same:.1e}"
                table(f"{backend}, one of 2 killed midway", seconds, arguments.images, alone, float("nan"), more)
        bytes_out = len(Packed((detector.embedder, detector.fitted_)).data)
        grid, dimensions = detector.fitted_.grid, detector.fitted_.scorer.bank_.shape[1]
        print(f"\nsent to every worker once: {bytes_out / 1e6:.1f} MB")
        print(f"back per image: {4 * grid[0] * grid[1] / 1e3:.1f} kB scored, ", end="")
        print(f"{4 * grid[0] * grid[1] * dimensions / 1e6:.2f} MB to be learnt from")


def killed_midway(detector, folder: Path, backend: str, after: float):
    """Score while a worker is killed, in the middle of what it computes."""

    def kill() -> None:
        time.sleep(after)
        while not (busy := workers_of(backend, "ray::PoolActor.run_batch")):  # they may only be starting
            time.sleep(0.05)
        print(f"killing {busy[0]}", file=sys.stderr)
        os.kill(busy[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = detector.score(folder)
    thread.join()
    for warning in told:
        print(f"  told: {str(warning.message)[:160]}")
    return found


def workers_of(backend: str, called: str = "ray::PoolActor") -> list[int]:
    """Processes that compute; Ray's agents, which a node does not outlive, are none."""
    if backend == "dask":
        from distributed import get_client

        return list(get_client().run(os.getpid).values())
    return [pid for pid in _below(os.getpid()) if _name(pid).startswith(called)]


def processor_seconds(pids: list[int]) -> float:
    """What processes have computed so far: time by the clock is that of everything else on the machine, too (Linux)."""
    ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]
    return sum(int(tick) for pair in ticks for tick in pair) / os.sysconf("SC_CLK_TCK")


def _below(pid: int) -> list[int]:
    """Processes that a process started, and those that they did (Linux)."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    return [*children, *(grandchild for child in children for grandchild in _below(child))]


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _name(pid: int) -> str:
    return "".join(_words(Path(f"/proc/{pid}/cmdline")))


class dask_workers:
    def __init__(self, count: int):
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        )
        self.client = Client(self.cluster)

    def __enter__(self) -> str:
        return "dask"

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.cluster.close()


class ray_workers:
    def __init__(self, count: int):
        import ray

        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)

    def __enter__(self) -> str:
        return "ray"

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()


def table(what: str, seconds: float, images: int, base: float, spent: float, more: str = "") -> None:
    """A line: seconds, images per second, times as fast as one process, ms of processor time per image."""
    print(
        f"| {what} | {seconds:.1f} | {images / seconds:.1f} | {base / seconds:.2f} | {spent:.1f} | {more} |", flush=True
    )


def parquet(arguments: argparse.Namespace) -> None:
    import pyarrow.parquet as pq

    code = (
        "import sys; from anomalib_lite import Detector; from anomalib_lite.scaling.parquet import score_to_parquet\n"
        "from anomalib_lite.machine.memory import peak_rss_mb\n"
        "written = score_to_parquet(Detector.load(sys.argv[1]), sys.argv[2], sys.argv[3], chunk=256)\n"
        "print(written.rows, written.resumed, round(peak_rss_mb()))"
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = draw(root / "parts", arguments.images, 64)
        first = sorted(folder.iterdir())[:200]
        model = Detector(image_size=64, bank_size=2000).fit(first).save(root / "model.safetensors")
        fewer = root / "fewer"
        fewer.mkdir()
        for path in sorted(folder.iterdir())[: arguments.images // 10]:
            os.link(path, fewer / path.name)
        command = [sys.executable, "-c", code, str(model), str(fewer), str(root / "of fewer")]
        seconds, found = timed(lambda: subprocess.run(command, check=True, capture_output=True, text=True))
        rows, _, peak = found.stdout.split()
        print(f"| {rows} images, not killed | {seconds:.1f} s | {int(rows) / seconds:.0f} per second | {peak} MB |")
        command[-2] = str(folder)
        out, kills, drawn = root / "killed", 0, random.Random(0)
        command[-1] = str(out)
        start = time.perf_counter()
        while kills < arguments.kills:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            there = len(list(out.glob("part-*")))
            time.sleep(drawn.uniform(0, 1))  # also before anything was written
            while process.poll() is None and len(list(out.glob("part-*"))) < there + drawn.randint(1, 4):
                time.sleep(0.01)
            time.sleep(drawn.uniform(0, 0.3))
            kills += process.poll() is None
            process.kill()
            process.wait()
        rows, resumed, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        ids = pq.read_table(out).column("id").to_pylist()
        expected = sorted(path.name for path in folder.iterdir())
        took, complete = time.perf_counter() - start, sorted(ids) == expected
        print(f"| {len(ids)} rows, {len(set(ids))} different, killed {kills} times | {took:.1f} s |", end="")
        print(f" {resumed} there at the last start; every image once: {complete} | {peak} MB |")


def fit(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = draw(Path(name) / "parts", arguments.images, 64)
        paths = sorted(folder.iterdir())
        counts = [arguments.images // 16, arguments.images // 4, arguments.images]
        seconds = []
        for count in counts:
            took, _ = timed(lambda n=count: Detector(image_size=64).fit(paths[:n], groups="each"))
            seconds.append(took)
            ms = 1000 * took / count
            print(f"| {count} | {took:.1f} s | {ms:.2f} ms | {peak_rss_mb():.0f} MB |", flush=True)
        slope = np.polyfit(np.log(counts), np.log(seconds), 1)[0]
        last = (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2])
        print(f"time grows as images to the {slope:.2f}; {1000 * last:.2f} ms for one more")


def drawn_rows(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as PCA leaves them, and queries: few directions hold most of the variance, and they lie in clusters."""
    rng = np.random.default_rng(0)
    spread = (1 / np.sqrt(1 + np.arange(128))).astype(np.float32)
    centres = rng.normal(size=(500, 128)).astype(np.float32) * spread

    def draw(count: int) -> np.ndarray:
        return centres[rng.integers(500, size=count)] + 0.5 * rng.normal(size=(count, 128)).astype(np.float32) * spread

    return draw(rows), draw(2048)


def patch_rows(folder: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduced patch rows of train/good at 256 pixels, as many of every image, and queries from test/."""
    from anomalib_lite.embedding.streaming import embed_source
    from anomalib_lite.images.mvtec import open_mvtec

    data, rng = open_mvtec(folder), np.random.default_rng(0)
    detector = Detector(image_size=256, dtype="float32", bank_size=1000).fit(data.train, groups="each")

    def taken(source, count: int) -> np.ndarray:
        found, each = [], -(-count // len(source))
        for image in embed_source(detector.embedder, source, np.arange(len(source))):
            patches = np.concatenate([block[1] for block in image.blocks(detector.fitted_.reduction)])
            found.append(patches[rng.permutation(len(patches))[:each]])
        return np.concatenate(found)[:count].astype(np.float32)

    bank, queries = taken(data.train, rows), taken(data.test, 2048)
    if len(bank) < rows:
        raise SystemExit(f"{folder} has {len(bank)} patch rows; --rows {len(bank)} at most")
    return bank, queries


def search(arguments: argparse.Namespace) -> None:
    import faiss

    from anomalib_lite.scoring.neighbors import NeighborIndex

    for rows in arguments.rows:
        bank, queries = patch_rows(arguments.data, rows) if arguments.data else drawn_rows(rows)
        flat = faiss.IndexFlatL2(128)
        flat.add(bank)
        indexes = {kind: NeighborIndex(bank, product=kind) for kind in arguments.kinds}
        ways = {"faiss Flat": lambda f=flat, q=queries: f.search(q, 2)}
        ways |= {f"ours, {kind}": lambda i=index, q=queries: i.search(q, 2) for kind, index in indexes.items()}
        # In turn, so that what else the machine does falls on all of them alike.
        rounds = [{way: timed(work)[0] for way, work in ways.items()} for _ in range(arguments.repeats)]
        took = {way: float(np.median([one[way] for one in rounds])) for way in ways}
        base = took["faiss Flat"]
        _, exact = flat.search(queries, 2)
        print(f"| {rows} | faiss Flat | {1000 * base:.0f} ms | 1.00 | |")
        for kind, index in indexes.items():
            distances, found = index.search(queries, 2)
            theirs = np.linalg.norm(bank[exact] - queries[:, None], axis=2)
            farther = float((distances / np.maximum(theirs, 1e-9)).max() - 1)
            other = Counter((found != exact).any(axis=1).tolist())[True] / len(queries)
            more = f"other neighbours {other:.2%}, farther by at most {farther:.1e}"
            ms = took[f"ours, {kind}"]
            print(f"| {rows} | ours, {kind} | {1000 * ms:.0f} ms | {base / ms:.2f} | {more} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "parquet", "fit", "search"])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--no-kill", action="store_true", help="of speed, leave out the killed worker")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--kinds", nargs="+", default=["float32", "bfloat16", "int8", "auto"], help="of search")
    parser.add_argument("--repeats", type=int, default=7, help="of search, of which the median is told")
    parser.add_argument("--data", type=Path, help="of search, a folder in MVTec layout to take patch rows from")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    {"speed": speed, "parquet": parquet, "fit": fit, "search": search}[given.part](given)
