"""What is quickest on this machine is measured once, and remembered in the user's cache.

The names of a processor's instructions do not tell: bf16 is twice as fast as float32 on one that names it, and slower
on another. A question is a text that names what is computed and its shape; answers are milliseconds by candidate. They
are kept apart by processor, number of cores, and versions of what computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.machine.threads import limit_threads, usable_cores
from anomalib_lite.version import __version__

Trials = Mapping[str, Callable[[], object]]
_ROUNDS = 5
_LONGEST = 0.3  # seconds for one candidate, after its first two runs
_LARGEST_FILE = 1 << 20
# A candidate that stands earlier in the order is taken unless another is quicker by more than this share.
SLACK = 0.1

_known: dict[str, dict[str, float]] = {}


def measured(question: str, trials: Callable[[], Trials], *, among: str) -> dict[str, float]:
    """Milliseconds by candidate, from the cache, or measured now and kept there.

    Parameters
    ----------
    question : str
        What is computed, and its shape.
    trials : callable
        Gives what each candidate computes; called only if nothing is known yet. A candidate that raises RuntimeError
        is left out: it does not work here.
    among : str
        A candidate that works anywhere; an answer in the cache that lacks it is measured again.
    """
    limit_threads()  # before anything is timed
    if question not in _known:
        _known.update({key: times for key, times in _read().items() if key not in _known})
    if among not in _known.get(question, {among: 0.0}):
        del _known[question]
    if question not in _known:
        _known[question] = _measure(trials())
        _write(question)
    return dict(_known[question])


def quickest(times: Mapping[str, float], order: tuple[str, ...]) -> str:
    """The first candidate in `order` that is not slower than the quickest by more than a tenth.

    Examples
    --------
    >>> quickest({"int8": 1.05, "float32": 1.0}, ("int8", "float32"))
    'int8'
    """
    best = min(times[name] for name in order if name in times)
    return next(name for name in order if name in times and times[name] <= (1 + SLACK) * best)


def forget() -> None:
    """Forget all that was measured on this machine, so that it is measured again."""
    _known.clear()
    with contextlib.suppress(OSError):
        cache_file().unlink(missing_ok=True)


def cache_file() -> Path:
    """Where measurements are kept; the folder is `ANOMALIB_LITE_CACHE`, or the system's for such things."""
    if folder := os.environ.get("ANOMALIB_LITE_CACHE"):
        return Path(folder) / "measured.json"
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData/Local")))
    elif sys.platform == "darwin":
        home = Path.home() / "Library/Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "anomalib_lite" / "measured.json"


@lru_cache(maxsize=1)
def describe_machine() -> dict[str, str]:
    """What answers depend on: the processor, its instructions (hashed), cores, and versions."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "CPU part"):
                name = value.strip()
            elif key.strip().lower() in ("flags", "features"):
                flags = " ".join(sorted(value.split()))
            elif not line.strip():
                break  # the first core stands for all
    return {
        "processor": name,
        "instructions": hashlib.sha256(flags.encode()).hexdigest()[:8],
        "cores": str(usable_cores()),
        "threads": str(torch.get_num_threads()),
        "limit": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "faiss": importlib.metadata.version("faiss-cpu"),
        "anomalib_lite": __version__,
    }


def _measure(trials: Trials) -> dict[str, float]:
    """The best of a few runs each, in turn: what else the machine does only ever adds."""
    times: dict[str, list[float]] = {}
    for round_ in range(_ROUNDS + 1):
        for name, run in trials.items():
            if round_ and (name not in times or sum(times[name]) > _LONGEST):
                continue
            start = time.perf_counter()
            try:
                run()
            except RuntimeError:
                times.pop(name, None)
                continue
            if round_ or name not in times:
                times.setdefault(name, []).append(time.perf_counter() - start)
    if not times:
        raise RuntimeError(f"none of {', '.join(trials)} works on this machine")
    return {name: round(1000 * min(seconds), 4) for name, seconds in times.items()}


def _read() -> dict[str, dict[str, float]]:
    """What the file says of this machine; nothing if there is none, and a warning if it is damaged."""
    path = cache_file()
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is too large")
        content = json.loads(path.read_text())
        own = content.get(_machine_key(), {})
        if not all(_is_answer(times) for times in own.values()):
            raise ValueError("it holds what are no times")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        warnings.warn(f"{path} cannot be read ({error}); what is quickest is measured again", stacklevel=3)
        return {}
    return own


def _write(question: str) -> None:
    path = cache_file()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was said when it was read
        own = {**_read(), question: _known[question]}
    content = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _LARGEST_FILE:
            content = json.loads(path.read_text())
    if not isinstance(content, dict):
        content = {}
    content[_machine_key()] = own
    with contextlib.suppress(OSError):  # a read-only home: it is measured in every process then
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1).encode())


def _is_answer(times: object) -> bool:
    return isinstance(times, dict) and bool(times) and all(isinstance(v, float | int) and v > 0 for v in times.values())


def _machine_key() -> str:
    return json.dumps(describe_machine())
