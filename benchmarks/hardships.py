"""What a line does to a server: a day of parts, slow clients, a full disk, bombs, strangers, requests off the schema.

python benchmarks/hardships.py soak --count 200000  # tiny drawn parts of two types from 16 clients; memory, mix-ups
python benchmarks/hardships.py slow                 # 300 clients that never finish what they send
python benchmarks/hardships.py disk                 # a disk of 560 MB runs full (Linux, as root: it is a tmpfs)
python benchmarks/hardships.py bombs                # two clients send decompression bombs at once, a third one parts
python benchmarks/hardships.py strangers            # every path, without a token and with a wrong one
python benchmarks/hardships.py schema --count 2000  # schemathesis: requests on and off the OpenAPI schema
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from serving import Server

from anomalib_lite import Detector
from anomalib_lite.images.synthetic import render_part

SIDE = 64
PARTS = "nut", "bolt"


def part(seed: int, kind: str | None = None, side: int = SIDE) -> bytes:
    """A drawn part as PNG."""
    file = io.BytesIO()
    Image.fromarray(render_part(np.random.default_rng(seed), side, *([kind] if kind else []))[0]).save(file, "png")
    return file.getvalue()


def models(folder: Path) -> dict[str, Path]:
    """A model of each part type, learnt from other drawn parts."""
    found = {}
    for number, name in enumerate(PARTS):
        good = [render_part(np.random.default_rng(1000 * number + i), SIDE)[0] for i in range(60)]
        detector = Detector(image_size=SIDE, false_alarm_rate=0.05, bank_size=500).fit(good)
        found[name] = detector.save(folder / f"{name}.safetensors")
    return found


def pixels_of(content: bytes) -> str:
    """SHA-256 of a picture's pixels, as verdicts tell it."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def soak(folder: Path, count: int) -> None:
    """Parts of two types from 16 clients, refused ones sent again; every answer is held against what was sent."""
    import multiprocessing

    paths = models(folder)
    digests = {name: Detector.load(path).digest for name, path in paths.items()}
    server = Server(folder / "server", paths, "--keep-gigabytes", "0.05")
    context = multiprocessing.get_context("spawn")
    try:
        print("| parts judged | memory, MB | threads | open files | on the disk, MB | parts a second |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        wrong: Counter[str] = Counter()
        scores: dict[tuple[str, int], float] = {}
        for tenth in range(11):  # the first one warms the server up, and is small
            some = 1000 if tenth == 0 else count // 10
            answers = context.Queue()
            process = context.Process(target=_send_many, args=(server.port, digests, some, answers))
            started = time.perf_counter()
            process.start()
            found, seen = answers.get()
            process.join()
            took = time.perf_counter() - started
            wrong.update(found)
            for key, score in seen.items():
                wrong["scored otherwise than before"] += scores.setdefault(key, score) != score
            own = Path(f"/proc/{server.process.pid}")
            size = sum(path.stat().st_size for path in (folder / "server").rglob("*") if path.is_file()) / 1e6
            threads, files = (len(list((own / what).iterdir())) for what in ("task", "fd"))
            judged = json.loads(server.ask("GET", "/v1/models/nut/state")[1])["judged"]
            judged += json.loads(server.ask("GET", "/v1/models/bolt/state")[1])["judged"]
            print(
                f"| {judged} | {server.memory():.0f} | {threads} | {files} | {size:.0f} | {some / took:.0f} |",
                flush=True,
            )
        print(f"answers that were wrong: {dict(+wrong) or 'none'}")
    finally:
        server.stop()


def _send_many(port: int, digests: dict[str, str], count: int, answers: object) -> None:
    import http.client

    pictures = [part(i, "scratch" if i % 10 == 0 else None) for i in range(200)]
    hashes = [pixels_of(content) for content in pictures]
    wrong: Counter[str] = Counter()
    scores: dict[tuple[str, int], float] = {}

    def send(own: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for i in range(own, count, 16):
            name, number = PARTS[i % 2], i % len(pictures)
            while True:
                connection.request("POST", f"/v1/models/{name}/score?name={i}", pictures[number])
                answer = connection.getresponse()
                content = answer.read()
                if answer.status == 200:
                    break
                wrong[f"status {answer.status}"] += answer.status != 429
                time.sleep(0.05)
            told = json.loads(content)
            wrong["of another picture"] += told["picture"] != hashes[number] or told["name"] != str(i)
            wrong["of another model"] += told["model"] != digests[name] or told["part"] != name
            wrong["no verdict"] += told["score"] is None
            if told["score"] is not None:
                scores[name, number] = round(told["score"], 4)

    running = [threading.Thread(target=send, args=(own,)) for own in range(16)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    answers.put((wrong, scores))  # type: ignore[attr-defined]


def slow(folder: Path, count: int) -> None:
    """Clients that begin a request and never end it: half in its header, half in its body."""
    server = Server(folder / "server", models(folder))
    good = part(5000)
    try:
        before = _latency(server, good, 50)
        sockets = []
        for i in range(count):
            connection = socket.create_connection(("127.0.0.1", server.port))
            head = b"POST /v1/models/nut/score HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            connection.sendall(head + (b"Content-Length: 100000\r\n\r\nxxxx" if i % 2 else b"X-Slow: "))
            sockets.append(connection)
        during = _latency(server, good, 50)
        started, ended = time.monotonic(), Counter[str]()
        for connection in sockets:
            connection.settimeout(max(0.01, 60 - (time.monotonic() - started)))
            try:
                told = connection.recv(100)
                ended[told.split(b"\r\n")[0].decode() or "closed"] += 1
            except OSError as error:
                ended[type(error).__name__] += 1
        print(
            f"{count} slow clients: the 95th percentile of another one's {1000 * before:.0f} ms before, "
            f"{1000 * during:.0f} ms beside them; they end within {time.monotonic() - started:.0f} s: {dict(ended)}"
        )
    finally:
        server.stop()


def disk(folder: Path, count: int) -> None:
    """A disk that pictures fill up to what they must leave free, then something else to the last byte."""
    mount = folder / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=560m", "tmpfs", str(mount)], check=True)
    server = None
    try:
        server = Server(mount / "server", models(folder))
        large, kept, statuses = part(1, side=1024), 0, Counter[int]()
        for _ in range(count):
            status, _ = server.ask("POST", "/v1/models/nut/score", large)
            statuses[status] += 1
            state = json.loads(server.ask("GET", "/v1/models/nut/state")[1])
            if state["pictures_full"]:
                break
            kept += 1
        for _ in range(20):
            statuses[server.ask("POST", "/v1/models/nut/score", large)[0]] += 1
        free = os.statvfs(mount)
        print(
            f"after {kept} pictures none are kept ({free.f_bavail * free.f_frsize / 1e6:.0f} MB are free), and it says "
            f"so: {state['pictures_full']}; statuses {dict(statuses)}"
        )
        with contextlib.suppress(OSError), (mount / "filler").open("wb") as filler:
            while True:
                filler.write(b"\0" * 4096)
                filler.flush()
        statuses = Counter(server.ask("POST", "/v1/models/nut/score", large)[0] for _ in range(20))
        print(
            f"with no byte left: statuses {dict(statuses)}, alive {server.ask('GET', '/healthz')[0]}, "
            f"ready {server.ask('GET', '/readyz')[0]}"
        )
        (mount / "filler").unlink()
        statuses = Counter(server.ask("POST", "/v1/models/nut/score", large)[0] for _ in range(20))
        print(f"with room again: statuses {dict(statuses)}")
    finally:
        if server is not None:
            server.stop()
        subprocess.run(["umount", str(mount)], check=False)


def bombs(folder: Path, count: int) -> None:
    """PNG files of little that claim, and hold, billions of pixels, and of as many as are just allowed."""
    server = Server(folder / "server", models(folder))
    good = part(5000)
    bombs = _bomb(60_000, 60_000), _bomb(9_000, 9_000)
    stop, statuses = threading.Event(), Counter[str]()

    def throw(bomb: bytes) -> None:
        while not stop.is_set():
            status, told = server.ask("POST", "/v1/models/nut/score", bomb)
            reason = json.loads(told).get("reason", "") if status == 200 else told.decode()
            statuses[f"{status} {reason}"[:90]] += 1

    try:
        before, memory = _latency(server, good, count), server.memory()
        throwing = [threading.Thread(target=throw, args=(bomb,)) for bomb in bombs]
        for thread in throwing:
            thread.start()
        during, most = _latency(server, good, count), server.memory()
        stop.set()
        for thread in throwing:
            thread.join()
        print(
            f"95th percentile of a third client {1000 * before:.0f} ms before, {1000 * during:.0f} ms beside bombs of "
            f"{' and '.join(f'{len(bomb) / 1e6:.1f}' for bomb in bombs)} MB; memory {memory:.0f} and {most:.0f} MB; "
            f"answers to them: {dict(statuses)}"
        )
    finally:
        server.stop()


def strangers(folder: Path, count: int) -> None:
    """Every path of the schema, by every method, without a token and with one that is not known."""
    tokens = folder / "tokens"
    tokens.write_text("line correct-horse-battery-staple\n")
    server = Server(folder / "server", models(folder), "--tokens", str(tokens))
    known = {"Authorization": "Bearer correct-horse-battery-staple"}
    try:
        schema = json.loads(server.ask("GET", "/openapi.json", headers=known)[1])
        found: Counter[str] = Counter()
        for path in [*schema["paths"], "/openapi.json", "/../history.sqlite", "/models/nut/1.safetensors", "/docs"]:
            filled = path.replace("{part}", "nut").replace("{identity}", "1").replace("{number}", "1")
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic bGluZTp4"}):
                    status = server.ask(method, filled, b"{}" if method == "POST" else None, headers=headers)[0]
                    found[f"{status} {filled}" if status != 401 else "401"] += 1
        print(f"requests of strangers by status, and where they are not refused: {dict(found)}")
    finally:
        server.stop()


def schema(folder: Path, count: int) -> None:
    """Requests that schemathesis makes of the OpenAPI schema, right ones and wrong ones."""
    server = Server(folder / "server", models(folder))
    told_of = json.loads(server.ask("GET", "/openapi.json")[1])
    there = {"part": {"enum": [*PARTS]}, "identity": {"enum": [1, 2, 3]}, "number": {"enum": [1, 2]}}
    for path in told_of["paths"].values():  # of things that are there, lest nearly all be answered with 404
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                parameter["schema"] = there.get(parameter["name"], parameter["schema"])
    (folder / "openapi.json").write_text(json.dumps(told_of))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json")]
    command += [
        "--url",
        f"http://127.0.0.1:{server.port}",
        "--checks",
        "not_a_server_error",
        "--max-examples",
        str(count),
        "--seed",
        "1",
        "--mode",
        "all",
    ]
    try:
        server.ask("POST", "/v1/models/nut/score", part(1))
        told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        print(told.stdout[-3000:], told.stderr[-500:])
        print("afterwards:", server.ask("POST", "/v1/models/nut/score", part(2))[0])
    finally:
        server.stop()


def _latency(server: Server, content: bytes, count: int) -> float:
    took = []
    for _ in range(count):
        started = time.perf_counter()
        status, told = server.ask("POST", "/v1/models/nut/score", content)
        assert status == 200, told
        assert json.loads(told)["score"] is not None, told
        took.append(time.perf_counter() - started)
    return float(np.quantile(took, 0.95))


def _bomb(width: int, height: int) -> bytes:
    """A PNG of so many grey pixels, compressed row by row so that making it takes no memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    packer, row, packed = zlib.compressobj(9), bytes(1 + width), []
    packed = [packer.compress(row) for _ in range(height)] + [packer.flush()]
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


RUNS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "soak": (soak, 200_000),
    "slow": (slow, 300),
    "disk": (disk, 400),
    "bombs": (bombs, 50),
    "strangers": (strangers, 0),
    "schema": (schema, 2000),
}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    run, count = RUNS[arguments.run]
    with _folder() as folder:
        run(folder, arguments.count or count)


if __name__ == "__main__":
    main()
