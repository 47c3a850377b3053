"""What the Triton kernels share: the package, and whether it works on a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # not shipped with PyTorch for macOS, Windows and some CPU builds
    triton = tl = None


def jit(kernel):
    """`triton.jit`, if Triton is installed."""
    return kernel if triton is None else triton.jit(kernel)


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class Trials:
    """Which kernels work on this machine, tried at their first use; one warning for each that fails.

    A kernel may not fit a GPU (shared memory, registers), or a version of Triton may not compile it. A step
    is rehearsed before it is captured, so nothing is tried during a capture.
    """

    def __init__(self):
        self.passed: set[tuple] = set()
        self.failed: set[str] = set()

    def allows(self, name: str, variant: tuple, trial: Callable[[], object]) -> bool:
        """Whether the kernels `name` work; `trial` runs them, once for each `variant` (sizes, types).

        Lack of memory says nothing about them, and is raised.
        """
        if name in self.failed or (name, variant) in self.passed:
            return name not in self.failed
        try:
            trial()
        except Exception as error:  # a compiler may raise anything
            if "out of memory" in str(error):
                raise
            self.failed.add(name)
            said = f"the kernels for {name} do not work on this machine; PyTorch's own code replaces them. "
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"{said}{type(error).__name__}: {reason}", RuntimeWarning, stacklevel=3)
            return False
        self.passed.add((name, variant))
        return True


trials = Trials()


def works(device: torch.device) -> bool:
    """Whether kernels run on this CUDA device at all: Triton may lack a C compiler or support for the GPU."""

    def trial() -> None:
        number = torch.zeros(1, device=device)
        with on_device_of(number):
            _write_one[(1,)](number)
        if number.item() != 1:
            raise RuntimeError("a kernel of Triton has no effect")

    return triton is not None and device.type == "cuda" and trials.allows("all layers", (device,), trial)


@jit
def _write_one(number):
    tl.store(number, 1.0)
