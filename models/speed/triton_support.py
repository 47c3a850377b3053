"""What the Triton kernels share: the package, and which of them work on this machine.

Triton launches on the current device, which need not be the tensor's: hence `torch.cuda.device_of`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # not shipped with PyTorch for macOS, Windows and some CPU builds
    triton = tl = None


def jit(kernel):
    """`triton.jit`, if Triton is installed."""
    return kernel if triton is None else triton.jit(kernel)


class Trials:
    """Which kernels work on this machine, tried at their first use; one warning for each reason to fail.

    Triton may lack a C compiler, or support for the GPU; a kernel may not fit it (shared memory, registers).
    A step is rehearsed before it is captured, so nothing is tried during a capture.
    """

    def __init__(self):
        self.passed: set[tuple] = set()
        self.failed: dict[str, str] = {}  # with the reason

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
            first_line = str(error).strip().partition("\n")[0]
            reason = f"{type(error).__name__}: {first_line}"
            if reason not in self.failed.values():
                said = f"the kernels for {name} do not work on this machine; PyTorch's own code replaces them"
                warnings.warn(f"{said}. {reason}", RuntimeWarning, stacklevel=3)
            self.failed[name] = reason
            return False
        self.passed.add((name, variant))
        return True


trials = Trials()


def works(device: torch.device) -> bool:
    """Whether kernels are tried on this device."""
    return triton is not None and device.type == "cuda"
