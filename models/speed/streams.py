"""A CUDA stream beside the current one; on other devices than CUDA, nothing."""

from __future__ import annotations

from contextlib import nullcontext

import torch


class SideStream:
    """`with` it, work is put on a stream of its own, behind what the current one has been given before.

    The current stream goes on meanwhile; what it is given after `join` comes behind that work. An exception joins too.
    Memory is the streams' own: what one uses of another's must be kept alive until `join`.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self._entered = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        self._entered.__enter__()

    def __exit__(self, *error) -> None:
        self._entered.__exit__(*error)
        if error[0] is not None:
            self.join()

    def join(self) -> None:
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
