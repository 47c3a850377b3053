"""Where half precision is too coarse."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def full(x: Tensor) -> Tensor:
    """`x` in float32 where it is in half precision; float32 and float64 stay."""
    return x.float() if x.dtype in HALVES else x
