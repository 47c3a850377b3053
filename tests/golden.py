"""Reads the golden numbers in tests/data (from the released code and from long-double brute force)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"


def load_golden(name: str) -> dict[str, torch.Tensor]:
    """The arrays of tests/data/NAME.npz as tensors."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
