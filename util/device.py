"""The one device a process trains or translates on."""

from __future__ import annotations

import functools
import os
import sys

import torch

from util.errors import UserError


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def get_device(gpu_ids: list[int]) -> torch.device:
    """The device that `--gpu_ids` means: [] is the CPU, [i, ...] CUDA device i, under torchrun that of the local rank.

    Where CUDA is missing, Apple's MPS or else the CPU stands in, said once.

    Raises:
        UserError: CUDA is there, but not the device asked for.
    """
    if not gpu_ids:
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else gpu_ids[0]
        if index >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"--gpu_ids asks for GPU {index}, but {found} were found; name one of 0 to {found - 1}, or -1"
            )
        return torch.device("cuda", index)
    if torch.backends.mps.is_available():
        _say_once("No CUDA device was found: running on Apple's GPU (MPS). --gpu_ids -1 would use the CPU.")
        return torch.device("mps")
    _say_once("No CUDA device was found: running on the CPU (--gpu_ids -1 says so without this notice).")
    return torch.device("cpu")
