"""What this machine computes with: the device and the number format, chosen at run time by measurement."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anomalib_lite.machine.measuring import measured, quickest

# Where neither is clearly quicker, float32: its scores are those of any other machine.
DTYPES = ("float32", "bfloat16")
_EMULATED = 4  # times as slow as float32 on a trifle, and larger shapes are not tried
_TRIAL = (8, 64, 64, 64)  # images, channels, height, width of the convolutions that decide


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
    """The number format for passes through networks: the one asked for, or the quicker of float32 and bf16 here.

    "auto" measures convolutions forward and backward, once per machine (`machine.measuring`).

    Raises
    ------
    ValueError
        If `dtype` is none of "auto", "float32", "bfloat16".
    """
    if dtype == "auto":
        dtype = quickest(dtype_times(device or torch.device("cpu")), DTYPES)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; choose 'auto', 'float32' or 'bfloat16'")
    return torch.float32 if dtype == "float32" else torch.bfloat16


def worth_trying(device: torch.device) -> tuple[str, ...]:
    """The number formats to measure: not bf16 where it is emulated, which may take a hundred times as long."""
    question = f"bf16 on {device.type}: a small convolution and a small product"

    def trials() -> dict[str, Callable[[], object]]:
        images, rows = torch.rand(1, 32, 16, 16, device=device), torch.rand(64, 128, device=device)
        kernel = torch.rand(32, 32, 3, 3, device=device)

        def both(dtype: torch.dtype) -> None:
            with torch.inference_mode():
                torch.nn.functional.conv2d(images.to(dtype), kernel.to(dtype))
                rows.to(dtype) @ rows.to(dtype).T
            wait_for(device)

        return {name: lambda name=name: both(getattr(torch, name)) for name in DTYPES}  # type: ignore[misc]

    times = measured(question, trials, among="float32")
    return DTYPES if times.get("bfloat16", float("inf")) < _EMULATED * times["float32"] else DTYPES[:1]


def dtype_times(device: torch.device) -> dict[str, float]:
    """Milliseconds of convolutions forward and backward, by dtype, measured once per machine."""
    n, channels, height, width = _TRIAL
    question = f"training on {device.type}: two convolutions 3 × 3 of {n} × {channels} × {height} × {width}"

    def trials() -> dict[str, Callable[[], object]]:
        images = torch.rand(_TRIAL, device=device).contiguous(memory_format=torch.channels_last)
        layers = [torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]).to(device)
        network.to(memory_format=torch.channels_last)

        def train(dtype: torch.dtype) -> None:
            with torch.enable_grad(), autocast(device, dtype):
                network(images).float().square().mean().backward()
            wait_for(device)

        return {name: lambda name=name: train(getattr(torch, name)) for name in worth_trying(device)}  # type: ignore[misc]

    return measured(question, trials, among="float32")


def wait_for(device: torch.device) -> None:
    """Return when the device has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Passes in `dtype` through parameters kept in float32, as training needs them; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
