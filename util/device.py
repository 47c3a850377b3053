"""The one device a process trains or translates on, copies from it, and the free memory."""

import contextlib
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError, note_once
from util.images import to_pixels

CGROUP = Path("/sys/fs/cgroup")  # the limit of a container


def get_device(gpu_ids: list[int]) -> torch.device:
    """The device of --gpu_ids: [i] CUDA's i, under torchrun that of the rank; else MPS; for [], the CPU."""
    if not gpu_ids:
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else gpu_ids[0]
        if index >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(f"--gpu_ids asks for GPU {index}, but {found} were found, from 0; -1 is the CPU")
        return torch.device("cuda", index)
    device, name = ("mps", "Apple's GPU (MPS)") if torch.backends.mps.is_available() else ("cpu", "the CPU")
    note_once(f"no CUDA device was found: running on {name} (--gpu_ids -1: on the CPU, without this notice)")
    return torch.device(device)


class HostCopy:
    """A copy of a tensor on the host; on CUDA nothing waits for it until its values are needed."""

    def __init__(self, tensor: Tensor):
        self._arrived = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.current_stream(tensor.device).record_event()
        else:
            self._host = tensor.cpu()

    def numpy(self) -> np.ndarray:
        """The values, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()


def host_pixels(images: Tensor) -> HostCopy:
    """Images (B, C, H, W) in [-1, 1] as (B, H, W, 1) uint8 where they are grey, else (B, H, W, 3)."""
    return HostCopy(to_pixels(images)[..., : 1 if images.shape[1] == 1 else 3])


def free_memory() -> float:
    """Bytes that this process can still get on the CPU before Linux kills it; infinity if unknown."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError, KeyError):
        free = 1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int(Path(CGROUP, "memory.max").read_text())
        free = min(free, limit - _numbers(Path(CGROUP, "memory.stat"))["anon"])
    return free


def _numbers(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if (words := line.split())}
