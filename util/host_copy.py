"""An asynchronous copy from the device to the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
