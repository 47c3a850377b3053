"""A CUDA stream beside the current one; does nothing on other devices."""

from __future__ import annotations

import torch


class SideStream:
    """Inside `with`, kernels run on a second stream that first waits for work already queued.

    The current stream continues meanwhile; work queued on it after `join` waits for this one. An exception
    joins too. Keep alive until `join` what one stream uses of the other's memory: each allocates its own.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            self._entered = torch.cuda.stream(self.stream)
            self._entered.__enter__()

    def __exit__(self, kind, *error) -> None:
        if self.stream is not None:
            self._entered.__exit__(kind, *error)
            if kind is not None:
                self.join()

    def join(self) -> None:
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
