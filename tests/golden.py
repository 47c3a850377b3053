"""Reads the golden numbers in tests/data (from the released code and from long-double brute force)."""

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"


def load_golden(name: str) -> dict[str, torch.Tensor]:
    """The arrays of tests/data/NAME.npz as tensors."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def load_baseline(name: str, folder: str = "baselines") -> dict[str, torch.Tensor | list[str] | str]:
    """The arrays of tests/data/FOLDER/NAME.npz: numbers as float64 or int64 tensors, texts as strings."""
    golden: dict[str, torch.Tensor | list[str] | str] = {}
    with np.load(DATA / folder / f"{name}.npz") as arrays:
        for key in arrays.files:
            array = np.asarray(arrays[key])
            if array.dtype.kind == "U":  # text
                golden[key] = array.tolist()
            else:
                dtype = np.int64 if array.dtype.kind in "iu" else np.float64
                golden[key] = torch.from_numpy(array.astype(dtype))
    return golden


def under(golden: dict, prefix: str) -> dict[str, torch.Tensor]:
    """The entries of `golden` below `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
