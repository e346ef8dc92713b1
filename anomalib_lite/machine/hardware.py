"""What this machine computes fast: the device and the number format, chosen at run time.

bf16 is used only where the processor names bf16 instructions, since it is emulated elsewhere. Whether it is the faster
one there the names do not tell; `dtype="float32"` decides by hand.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16"]

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 names, then Arm's, as in /proc/cpuinfo


def pick_device(device: str = "auto") -> torch.device:
    """Return the device to compute on: CUDA when there is one, or what was asked for.

    Raises
    ------
    ValueError
        If torch knows no such device, or CUDA is asked for on a machine without it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no CUDA device here; use device='cpu' or 'auto'")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a device; choose 'auto', 'cpu', 'cuda' or 'cuda:1'") from error


def pick_dtype(dtype: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """Return the number format for network passes: bf16 where the hardware has it, else float32.

    Raises
    ------
    ValueError
        If `dtype` is none of "auto", "float32", "bfloat16".
    """
    if dtype == "auto":
        return torch.bfloat16 if has_fast_bf16(device or torch.device("cpu")) else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}; choose 'auto', 'float32' or 'bfloat16'")
    return torch.float32 if dtype == "float32" else torch.bfloat16


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Passes in `dtype` through parameters kept in float32, as training needs them; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether matrix products in bf16 run on hardware instructions rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere is the first with bf16 units
    return device.type == "cpu" and _cpu_has_bf16()


@lru_cache(maxsize=1)
def _cpu_has_bf16() -> bool:
    if platform.system() != "Linux":
        return False  # no instruction list to read there: float32 is right everywhere
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.lower().startswith(("flags", "features")):
            return bool(_BF16_FLAGS & set(line.split(":", 1)[1].split()))
    return False
