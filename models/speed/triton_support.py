"""What the modules of Triton kernels share: the package where it is installed, and whether it works on a device."""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # not shipped with PyTorch for macOS, Windows and some CPU builds
    triton = tl = None


def jit(kernel):
    """`triton.jit`, where there is Triton."""
    return kernel if triton is None else triton.jit(kernel)


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def installed() -> bool:
    """Whether Triton is there. Kernels then take CUDA tensors; in Triton's interpreter, CPU tensors."""
    return triton is not None


@functools.cache
def works(device: torch.device) -> bool:
    """Whether kernels run on this CUDA device: a trial, since Triton may lack a C compiler or support for the GPU.

    One warning says what is in the way; plain PyTorch then does the work.
    """
    if not installed() or device.type != "cuda":
        return False
    number = torch.zeros(1, device=device)
    try:
        with on_device_of(number):
            _trial[(1,)](number)
        return number.item() == 1
    except Exception as error:  # whatever a compiler may raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"Triton does not work on this machine, and slower code takes its place. {type(error).__name__}: {reason[0]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


@jit
def _trial(number):
    tl.store(number, 1.0)
