"""Where half precision is too coarse, and where autocast would choose it."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def full(x: Tensor) -> Tensor:
    """`x` in float32 where it is in half precision; float32 and float64 stay."""
    return x.float() if x.dtype in HALVES else x


def to_autocast(x: Tensor) -> Tensor:
    """`x` in autocast's type where autocast is on; else `x` itself."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
