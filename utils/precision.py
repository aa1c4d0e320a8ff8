"""Which device, number format and memory layout a run uses: chosen once, said once, applied everywhere from here."""

import contextlib
import copy
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from utils.errors import SettingsError
from utils.ranks import read_launch

Network = TypeVar("Network", bound=nn.Module)

AMP_CHOICES = ("auto", "off", "bf16", "fp16")


def cpu_has_fast_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


@dataclass(frozen=True)
class Precision:
    """Device, mixed-precision format (None is full precision) and memory layout of one run."""

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool

    @property
    def needs_scaler(self) -> bool:
        """fp16 gradients underflow unless the loss is scaled."""
        return self.dtype is torch.float16

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context that the forward pass runs in."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def place(self, model: Network) -> Network:
        """Move `model` to the device and layout; its parameters keep their number format."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def place_for_inference(self, model: Network) -> Network:
        """Move `model` to the device, layout and number format, but for the layers that ask for `full_precision`."""
        model = self.place(model)
        if self.dtype is None:
            return model
        kept = [
            (module, copy.deepcopy(module.state_dict()))
            for module in model.modules()
            if getattr(module, "full_precision", False)
        ]
        model.to(self.dtype)
        for module, state in kept:
            module.float().load_state_dict(state)
        return model

    def images(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, ch, H, W) uint8 to the device in [0, 1], in the layout and `dtype` that the network wants."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return pixels.to(self.device, non_blocking=True).to(dtype, memory_format=layout).div_(255)

    def describe(self) -> str:
        """One line for the start of a run."""
        name = {None: "fp32", torch.bfloat16: "bf16 mixed precision", torch.float16: "fp16 mixed precision"}[self.dtype]
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        if self.device.type == "cuda" and self.dtype is None and torch.backends.cudnn.allow_tf32:
            name += " (TF32 in convolutions)"
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{device}{threads}, {name}, {layout}"


def device_of_rank(device: str, local_rank: int) -> str:
    """Return the device of one of a machine's ranks: each takes one of the list, or the GPU of its own number.

    Raises:
        SettingsError: the list is too short.
    """
    listed = [part.strip() for part in device.split(",")]
    if all(part.isdigit() for part in listed):
        if local_rank >= len(listed):
            raise SettingsError(
                f"--device {device}: {len(listed)} devices for {local_rank + 1} or more processes: expected one for "
                "each; leave --device out, or start fewer processes"
            )
        return listed[local_rank]
    if device in ("", "cuda"):
        return str(local_rank) if torch.cuda.is_available() else "cpu" if device == "" else device
    return device


def choose_device(device: str) -> torch.device:
    """Turn a --device flag ('', 'cpu', 'mps', '0', 'cuda:1') into a device that exists.

    Under torchrun every process of a machine gets a GPU of its own: that of its local rank, or that of the list '0,1'.

    Raises:
        SettingsError: the device is unknown or not present.
    """
    launched = read_launch()
    if launched and device not in ("cpu", "mps"):
        device = device_of_rank(device, launched.local_rank)
    if device == "":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    if "," in device:
        count = len(device.split(","))
        raise SettingsError(
            f"--device {device}: one device was expected; for {count} of them type: "
            f"torchrun --standalone --nproc-per-node {count} {Path(sys.argv[0]).name} with the same flags"
        )
    try:
        chosen = torch.device(f"cuda:{device}" if device.isdigit() else device)
    except RuntimeError as error:
        raise SettingsError(f"--device {device}: unknown: expected cpu, mps, or a CUDA number such as 0") from error
    present = {
        "cpu": 1,
        "mps": int(torch.backends.mps.is_available()),
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }
    if (chosen.index or 0) >= present.get(chosen.type, 0):
        raise SettingsError(
            f"--device {device}: not present: torch {torch.__version__} sees {present['cuda']} CUDA devices; "
            "use --device cpu"
        )
    return chosen


def choose_precision(device: str = "", amp: str = "auto") -> Precision:
    """Choose what a run computes in.

    Args:
        device: a --device flag; empty for the best device present.
        amp: 'auto' (fp16 or bf16 on CUDA, bf16 on a CPU with AMX or AVX512-BF16, else fp32), 'off', 'bf16' or 'fp16'.
    Raises:
        SettingsError: an unknown value, or a device that is not present.
    """
    if amp not in AMP_CHOICES:
        raise SettingsError(f"--amp {amp}: expected one of {', '.join(AMP_CHOICES)}")
    chosen = choose_device(device)
    if amp == "fp16" and chosen.type == "cpu":
        raise SettingsError("--amp fp16: needs a GPU; on a CPU use bf16 or off")
    if amp == "auto" and chosen.type == "cuda":
        amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif amp == "auto":
        amp = "bf16" if chosen.type == "cpu" and cpu_has_fast_bf16() else "off"
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return Precision(chosen, dtype, channels_last=dtype is not None)


def worker_count(requested: int) -> int:
    """Cap loader workers at the number of processors that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(requested, available))
