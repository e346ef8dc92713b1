"""The server under load, killed, and given nonsense: clients in another process, on loopback.

python benchmarks/serving.py --data metal_nut                    # throughput, latency, memory
python benchmarks/serving.py --data metal_nut --kills 50         # no acknowledged verdict is lost
python benchmarks/serving.py --data metal_nut --mutations 5000   # damaged pictures and requests
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anomalib_lite import Detector

PATH = "/v1/models/part/score"


class Server:
    """A server process of its own."""

    def __init__(self, folder: Path, models: Mapping[str, Path], *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "anomalib_lite.cli", "serve", str(folder), "--port", str(self.port)]
        command += [word for name, model in models.items() for word in ("--model", f"{name}={model}")]
        command += options
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if self.ask("GET", "/readyz")[0] in (200, 401):
                    break
            except OSError:
                time.sleep(0.05)
            if self.process.poll() is not None:
                raise SystemExit("the server has ended")

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def memory(self) -> float:
        """Resident, in MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def clients(port: int, pictures: list[bytes], requests: int, threads: int, answers: multiprocessing.Queue) -> None:
    """Send so many requests from so many threads, each over one connection; puts seconds of each, and refusals."""
    took: list[float] = []
    refused = [0]

    def one(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for i in range(number, requests, threads):
            started = time.perf_counter()
            while True:
                connection.request("POST", f"{PATH}?name={i}", pictures[i % len(pictures)])
                answer = connection.getresponse()
                told = answer.read()
                if answer.status == 200:
                    assert json.loads(told)["name"] == str(i)
                    break
                refused[0] += 1
                time.sleep(0.05)
            took.append(time.perf_counter() - started)

    started = time.perf_counter()
    running = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    answers.put((time.perf_counter() - started, took, refused[0]))


def loaded(server: Server, pictures: list[bytes], requests: int, threads: int) -> tuple[float, list[float], int]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=clients, args=(server.port, pictures, requests, threads, answers))
    process.start()
    found = answers.get()
    process.join()
    return found


def load(folder: Path, model: Path, paths: list[Path], requests: int, soak: int) -> None:
    good = [path for path in paths if path.parent.name == "good"]
    bad = [path for path in paths if path.parent.name != "good"]
    paths = [*4 * good, *bad[:: max(1, len(bad) * 9 // (4 * len(good)))]]  # nine of ten are good, as on a line
    random.Random(0).shuffle(paths)
    detector = Detector.load(model).warm_up()
    some = [str(path) for path in paths]
    pictures = [path.read_bytes() for path in paths]
    server = Server(folder, {"part": model})
    print("| | |\n|---|---|")
    try:
        loaded(server, pictures, 64, 4)
        ratios, singles, p95s = [], [], []
        for _ in range(3):
            started = time.perf_counter()
            detector.score(some)
            bare = len(some) / (time.perf_counter() - started)
            seconds, _, refused = loaded(server, pictures, requests, 16)
            ratios.append(requests / seconds / bare)
            started = time.perf_counter()
            for path in some[:40]:
                detector.score(path)
            singles.append((time.perf_counter() - started) / 40)
            p95s.append(float(np.quantile(loaded(server, pictures, 200, 1)[1], 0.95)))
        ratio, single = np.median(ratios), float(np.median(singles))
        print(f"| throughput of 16 clients / bare batch rate ({bare:.0f} a second), median of 3 | {ratio:.2f} |")
        print(f"| p95 of one client / a single score call ({1000 * single:.1f} ms) | {np.median(p95s) / single:.2f} |")
        print(f"| refused with 429 of {requests} requests, sent again | {refused} |")
        before = server.memory()
        loaded(server, pictures[:8], soak, 16)
        print(f"| memory before and after {soak} requests | {before:.0f} and {server.memory():.0f} MB |")
    finally:
        server.stop()


def kills(folder: Path, model: Path, paths: list[Path], times: int) -> None:
    pictures = [path.read_bytes() for path in paths]
    acknowledged: dict[int, str] = {}
    for round_ in range(times):
        server = Server(folder, {"part": model} if round_ == 0 else {})
        ended = threading.Event()

        def send(number: int, server: Server = server, ended: threading.Event = ended) -> None:
            i = number
            while not ended.is_set():
                try:
                    status, told = server.ask("POST", PATH, pictures[i % len(pictures)])
                except (OSError, http.client.HTTPException):
                    return
                if status == 200:
                    entry = json.loads(told)
                    acknowledged[entry["id"]] = entry["picture"]
                i += 4

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.2, 1.0))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        ended.set()
        for thread in threads:
            thread.join()
    from anomalib_lite.serving.history import History

    history = History(folder / "history.sqlite")
    there = {entry["id"]: entry["picture"] for entry in history.all()}
    lost = [identity for identity, picture in acknowledged.items() if there.get(identity) != picture]
    print(f"{times} kills under load: {len(acknowledged)} verdicts acknowledged, {len(lost)} of them lost")


def mutations(folder: Path, model: Path, paths: list[Path], count: int) -> None:
    rng = random.Random(0)
    server = Server(folder, {"part": model})
    found: dict[str, int] = {}
    others = ["/v1/models/part/verdicts", "/v1/verdicts/1/said", "/v1/models/part/versions/1/release"]
    try:
        for i in range(count):
            content = bytearray(paths[i % len(paths)].read_bytes())
            for _ in range(rng.randint(1, 20)):
                where = rng.randrange(len(content))
                kind = rng.randrange(4)
                if kind == 0:
                    content[where] = rng.randrange(256)
                elif kind == 1:
                    del content[where : where + rng.randrange(1, 2000)]
                elif kind == 2:
                    content[where:where] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 50)))
                else:
                    content[where : where + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
                if not content:
                    content = bytearray(b"x")
            path = PATH if rng.random() < 0.8 else rng.choice(others)
            if rng.random() < 0.2:
                parameter = rng.choice(["name", "lot", "camera", "limit", "before"])
                path += "?" + urllib.parse.urlencode({parameter: "\0\uffff%" * rng.randrange(40)})
            method = rng.choice(["POST", "POST", "POST", "POST", "GET", "PUT"])
            try:
                status, told = server.ask(method, path, bytes(content))
                judged = status == 200 and told[:1] == b"{" and b'"verdict"' in told
                key = f"{status} {json.loads(told)['verdict']}" if judged else str(status)
            except (OSError, http.client.HTTPException) as error:
                key = type(error).__name__
            found[key] = found.get(key, 0) + 1
        status, told = server.ask("POST", PATH, paths[0].read_bytes())
        afterwards = f"{status} {json.loads(told)['verdict']}"
        print(f"{count} mutated requests: {dict(sorted(found.items()))}; afterwards: {afterwards}")
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--soak", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=0)
    arguments = parser.parse_args()
    train = sorted((arguments.data / "train" / "good").iterdir())
    test = sorted((arguments.data / "test").rglob("*.*"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detector = Detector(false_alarm_rate=0.05).fit([str(path) for path in train], groups="each")
        model = detector.save(folder / "m.safetensors")
        if arguments.kills:
            kills(folder / "server", model, test, arguments.kills)
        elif arguments.mutations:
            mutations(folder / "server", model, test, arguments.mutations)
        else:
            load(folder / "server", model, test, arguments.requests, arguments.soak)


if __name__ == "__main__":
    main()
