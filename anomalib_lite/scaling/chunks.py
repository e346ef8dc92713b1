"""Chunks of images through joblib's backend in force: results in the order of the chunks, whatever dies on the way.

Nothing is scheduled here: loky, Dask or Ray decides where a chunk is computed. What all chunks need (a network, a bank)
is packed once, and unpacked once by every process. A few chunks at a time are under way, so that neither their number
nor that of the workers changes a result, and what has come back and was not used yet has a bound.

A worker that dies takes its chunks with it: they are computed again, then one by one, then in halves, until the image
that kills workers stands alone and is given up; everything of it is said in warnings. Workers that fail at nothing at
all are an error: no image is given up for an engine that has gone.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from queue import Queue
from typing import Any

import cloudpickle
import joblib
import numpy as np
from joblib.parallel import get_active_backend, register_parallel_backend

from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.machine.memory import keep_freed_memory
from anomalib_lite.scaling.sending import Noted, note, noted, only

CHUNK = 32  # images of a chunk, or fewer where they are large
AT_A_TIME = 2  # chunks per worker: one is computed while the other's result is on its way
_KEPT = 2  # what has been unpacked in a process; a fit and a run of scoring use one each
_here = threading.local()
_unpacked: dict[str, Any] = {}
_unpacking = threading.Lock()


@dataclass(frozen=True)
class Engine:
    """Where joblib computes: its backend in force, and how many workers it has."""

    backend: Any
    n_jobs: int
    workers: int


@dataclass(frozen=True)
class Chunk:
    """Some images of a source that holds no others."""

    source: ImageSource
    indices: tuple[int, ...]

    @classmethod
    def of(cls, source: ImageSource, indices: Iterable[int]) -> Chunk:
        """Those at `indices`."""
        chosen = tuple(indices)
        return cls(only(source, chosen), chosen)

    def halves(self) -> list[Chunk]:
        middle = len(self.indices) // 2
        return [Chunk.of(self.source, part) for part in (self.indices[:middle], self.indices[middle:])]

    @property
    def name(self) -> str:
        first, last = (self.source.ids[i] for i in (self.indices[0], self.indices[-1]))
        return first if len(self.indices) == 1 else f"{len(self.indices)} images from {first} to {last}"


@dataclass(frozen=True)
class Done:
    """What a worker made of a chunk: one entry per image, and what its source noted on the way."""

    chunk: Chunk
    found: list[Any]
    notes: Noted


class Packed:
    """Something that all chunks need, as bytes that every process unpacks once."""

    def __init__(self, content: Any):
        try:
            data = cloudpickle.dumps(content)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(f"this cannot be sent to other processes ({error}); leave joblib's backend out") from error
        self.digest = hashlib.sha256(data).hexdigest()
        self.data = np.frombuffer(data, dtype=np.uint8)  # as an array, which joblib maps or scatters once


def unpacked(digest: str, data: np.ndarray) -> Any:
    """The content of what was packed, the same object in every call of this process."""
    with _unpacking:
        if digest not in _unpacked:
            while len(_unpacked) >= _KEPT:
                del _unpacked[next(iter(_unpacked))]
            keep_freed_memory()
            _unpacked[digest] = pickle.loads(data.tobytes())
        return _unpacked[digest]


Work = Callable[[Any, Chunk], list[Any]]


def engine_in_force() -> Engine | None:
    """The processes that ``joblib.parallel_config`` has set up around this call; None to compute right here.

    Raises
    ------
    ValueError
        For the backend "multiprocessing", whose forked children could not compute.
    """
    if getattr(_here, "inside", False):  # a worker does not ask for workers
        return None
    backend, n_jobs = get_active_backend()
    if getattr(backend, "uses_threads", False):
        return None
    if n_jobs is None:
        n_jobs = backend.default_n_jobs
    name = type(backend).__name__
    if name == "MultiprocessingBackend":
        raise ValueError(
            "joblib's backend 'multiprocessing' forks, and a forked child cannot compute; choose 'loky', 'dask', 'ray'"
        )
    workers = backend.effective_n_jobs(n_jobs)
    if workers < 1:
        raise ValueError(f"the backend {name} has no workers yet; wait until some are there")
    return None if workers == 1 else Engine(backend, n_jobs, workers)  # joblib sends nothing to an only worker


def over_chunks(
    engine: Engine, work: Work, packed: Packed, chunks: Iterable[Chunk], *, at_a_time: int = AT_A_TIME
) -> Iterator[Done]:
    """Compute chunks by the engine's workers, and yield what they found, in the order of the chunks.

    Parameters
    ----------
    work : a function of what was packed and of a chunk, that gives an entry per image
    chunks : taken from as they are needed
    at_a_time : chunks per worker that are under way together; three times as many may be held here

    Warns
    -----
    UserWarning
        If a worker died; it names the images.

    Raises
    ------
    Exception
        Whatever `work` raised.
    RuntimeError
        If there are no workers any more that could do anything.
    """
    ready: Queue[Any] = Queue(1)
    stopped = threading.Event()

    def compute() -> None:
        waiting = iter(chunks)
        with _Workers(engine, work, packed) as workers:
            while not stopped.is_set() and (wave := list(islice(waiting, at_a_time * engine.workers))):
                ready.put(workers.done(wave))

    def computing() -> None:
        try:
            compute()
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=computing, name="anomalib_lite-chunks", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            results, complaints = item
            for complaint in complaints:
                warnings.warn(complaint, stacklevel=2)
            yield from results
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait to hand on what nobody wants any more
            while not ready.empty():
                ready.get_nowait()
            thread.join(0.05)


class _Workers:
    """The workers of an engine, asked for some chunks at a time, and asked again when some die."""

    def __init__(self, engine: Engine, work: Work, packed: Packed):
        self.engine, self.work, self.packed = engine, work, packed
        self.complaints: list[str] = []
        self._parallel: Any = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def done(self, chunks: Sequence[Chunk]) -> tuple[list[Done], list[str]]:
        """What was found in chunks, and what there is to complain of."""
        self.complaints = []
        return self._computed(list(chunks)), self.complaints

    def _computed(self, chunks: list[Chunk], tries: int = 2) -> list[Done]:
        for _ in range(tries):
            try:
                answers = self._asked(chunks)
            # What an image or the work does wrong comes back as an answer; an error here is of the workers themselves.
            except Exception as error:
                self._close()
                what = "; ".join(chunk.name for chunk in chunks[:3]) + ("; …" if len(chunks) > 3 else "")
                self.complaints.append(f"a worker died ({_short(error)}); computed again: {what}")
                self._see_whether_any_works()
                continue
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            return answers
        if len(chunks) > 1:  # which of them it is
            return [done for chunk in chunks for done in self._computed([chunk])]
        if len(chunks[0].indices) > 1:
            return [done for half in chunks[0].halves() for done in self._computed([half], tries=1)]
        (chunk,) = chunks
        (index,) = chunk.indices
        reason = f"{chunk.name}: the process that looked at it died, each time; look at the picture, or at its memory"
        return [Done(chunk, [UnreadableImage(index, chunk.name, reason)], Noted())]

    def _see_whether_any_works(self) -> None:
        """Raise if workers fail at nothing at all: then the engine has gone, and no image is to blame."""
        try:
            self._opened()(joblib.delayed(os.getpid)() for _ in range(self.engine.workers))
        except Exception as error:
            self._close()
            name = type(self.engine.backend).__name__
            raise RuntimeError(
                f"{name}: no worker works any more ({_short(error)}); start them and this again"
            ) from error

    def _opened(self) -> Any:
        if self._parallel is None:
            self._parallel = joblib.Parallel(
                n_jobs=self.engine.n_jobs, backend=self.engine.backend, batch_size=1, pre_dispatch="all"
            ).__enter__()
        return self._parallel

    def _asked(self, chunks: list[Chunk]) -> list[Any]:
        # The array by itself, since joblib looks no deeper for what is to be mapped (loky) or scattered once (Dask).
        digest, data = self.packed.digest, self.packed.data
        return self._opened()(joblib.delayed(_answer)(self.work, digest, data, chunk) for chunk in chunks)

    def _close(self) -> None:
        parallel, self._parallel = self._parallel, None
        if parallel is not None:
            try:
                parallel.__exit__(None, None, None)
            except Exception as error:  # of workers that are gone already
                self.complaints.append(f"workers did not end as they should: {error!r}")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _answer(work: Work, digest: str, data: np.ndarray, chunk: Chunk) -> Any:
    """In a worker: what was found, or the error."""
    _here.inside = True
    try:
        found = work(unpacked(digest, data), chunk)
        return Done(replace(chunk, source=_Names.of(chunk)), found, noted(chunk.source))
    except Exception as error:
        try:
            cloudpickle.loads(cloudpickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
    finally:
        _here.inside = False


class _Names:
    """What is left of a source on the way back: its pictures are not sent home again."""

    def __init__(self, ids: dict[int, str]):
        self.ids: Any = ids

    @classmethod
    def of(cls, chunk: Chunk) -> _Names:
        return cls({i: chunk.source.ids[i] for i in chunk.indices})

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        raise LookupError(f"{self.ids[i]} was left where it was computed")


def each_alone(work: Callable[[Chunk], list[Any]], chunk: Chunk, *, strict: bool) -> list[Any]:
    """Do work on a chunk; where it fails, image by image, and those at which it fails are unreadable.

    Where it fails at all of several, it is no fault of the images, and the error is raised; so it is with `strict`.
    """
    try:
        return work(chunk)
    except Exception as error:
        if strict:
            raise
        first = error
    found: list[Any] = []
    lost = 0
    for i in chunk.indices:
        try:
            found += work(replace(chunk, indices=(i,)))
        except Exception as error:
            name = chunk.source.ids[i]
            found.append(UnreadableImage(i, name, f"{name}: cannot be computed ({type(error).__name__}: {error})"))
            lost += 1
    if lost == len(chunk.indices) > 1:
        raise first
    return found


def cut(source: ImageSource, indices: Sequence[int], size: int) -> Iterator[Chunk]:
    """Chunks of so many images, in their order."""
    for start in range(0, len(indices), size):
        yield Chunk.of(source, indices[start : start + size])


def kept_notes(source: ImageSource, results: Iterable[Done]) -> Iterator[Any]:
    """The entries of results one by one; what was noted elsewhere is noted at the source here."""
    for done in results:
        note(source, done.notes)
        yield from done.found


def _ray(**given: Any) -> Any:
    """Ray's backend for joblib, by name: all of its processors by default, as Dask's."""
    try:
        import ray
        from ray.util.joblib import ray_backend
    except ImportError as error:
        raise ImportError("joblib's backend 'ray' needs Ray: pip install 'anomalib_lite[ray]'") from error

    class RayBackend(ray_backend.RayBackend):
        default_n_jobs = -1

    if not ray.is_initialized():
        ray.init()
    return RayBackend(**given)


register_parallel_backend("ray", _ray)
