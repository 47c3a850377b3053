"""The one device a process trains or translates on."""

from __future__ import annotations

import functools
import os
import sys

import torch

from util.errors import UserError


def get_device(gpu_ids: list[int]) -> torch.device:
    """The device of `--gpu_ids`: [] is the CPU, [i] CUDA device i, under torchrun that of the local rank.

    Without CUDA, it is Apple's MPS or else the CPU, with one notice per process.
    """
    if not gpu_ids:
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else gpu_ids[0]
        if index >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(f"--gpu_ids asks for GPU {index}, but {found} were found, from 0; -1 is the CPU")
        return torch.device("cuda", index)
    if torch.backends.mps.is_available():
        _say_once("No CUDA device was found: running on Apple's GPU (MPS). --gpu_ids -1 uses the CPU.")
        return torch.device("mps")
    _say_once("No CUDA device was found: running on the CPU (--gpu_ids -1 does so without this notice).")
    return torch.device("cpu")


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)
