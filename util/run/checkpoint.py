"""The saved state of a training, weights included, from which it continues exactly."""

import random
from pathlib import Path

import numpy as np
import torch

from util.files import verify_archive, write_atomically

STATE_FILE = "latest_state.pth"


def save_state(folder: Path, state: dict) -> None:
    """Write `state` under another name, flush it to disk, read it back, and replace the state before."""

    def write(path: Path) -> None:
        torch.save({"random": random_state(), **state}, path)
        verify_archive(path)

    write_atomically(folder / STATE_FILE, write)


def load_state(folder: Path) -> dict:
    """What `save_state` has saved; an exception of some type where it is damaged."""
    verify_archive(folder / STATE_FILE)  # torch.load does not check checksums
    return torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)


def random_state() -> dict:
    """The state of every random generator, as tensors and plain numbers."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # asking would take memory of a GPU that this run does not use
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Continue the random generators from `random_state()`; a GPU's only if this run uses one."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
