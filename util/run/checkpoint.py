"""Saving a run so that it can be continued exactly, and continuing it.

`{latest|N|iter_N}_net_NAME.pth` are the weights in the released format, for any program. `latest_state.pth`
is the whole state of the training in one file, weights included, so a resume never mixes two saves: a
temporary file is written, flushed to disk, read back and checked, and only then replaces the previous state.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from util.errors import UserError, lacks_memory
from util.files import verify_archive, write_atomically
from util.run.progress import Progress

FORMAT = 1
STATE_FILE = "latest_state.pth"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        model: a `BaseModel`.
        parts: name -> (getter, setter) of what else belongs to the state, such as logs.
        writes: whether this process writes the files; all processes of a training call `save` together.
    """

    def __init__(self, folder: Path, model, parts: dict[str, tuple[Callable, Callable]], writes: bool):
        self.folder, self.model, self.parts, self.writes = folder, model, parts, writes

    def save(self, progress: Progress, *names: str) -> None:
        """Save the weights under each of `names` ("latest", "5", "iter_5000"), and the state.

        Numbered weights are written before the state, since a resume from it would not write them again. The
        latest ones are written after it, since without a state they would look like a run that never had one.

        Raises:
            OSError: a file could not be written.
        """
        model_state = self.model.training_state()
        if not self.writes:
            return
        for name in names:
            if name != "latest":
                self.model.save_networks(self.folder, name)
        state = {
            "format": FORMAT,
            "progress": asdict(progress),
            "model": model_state,
            "random": random_state(),
            **{name: get() for name, (get, _) in self.parts.items()},
        }

        def write(path: Path) -> None:
            torch.save(state, path)
            verify_archive(path)

        write_atomically(self.folder / STATE_FILE, write)
        if "latest" in names:
            self.model.save_networks(self.folder, "latest")

    def resume(self) -> Progress:
        """Put model, random generators and logs back to where the state was saved."""
        path = self.folder / STATE_FILE
        found = None
        try:
            verify_archive(path)  # torch.load does not check checksums
            state = torch.load(path, map_location="cpu", weights_only=True)
            if (found := state["format"]) == FORMAT:
                progress = Progress(**state["progress"])
                self.model.load_training_state(state["model"])
                set_random_state(state["random"])
                for name, (_, put) in self.parts.items():
                    if name in state:
                        put(state[name])
                return progress
        except UserError as error:  # which network differs, and by which option
            raise UserError(
                f"{path} was saved with other networks than these options build: {error}"
            ) from None
        except Exception as error:  # torch raises exceptions of many types for damaged files
            if lacks_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            alone = (
                "to continue from the weights alone, remove the file and use --continue_train --epoch latest"
            )
            raise UserError(f"{path} is damaged ({reason}); {alone}") from None
        raise UserError(f"{path} has format {found}, but this version reads format {FORMAT}")


def options_in_state(folder: Path) -> dict[str, object] | None:
    """The options, unchecked, in a run's saved state; None where it has none or cannot be read."""
    try:
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
        return dict(state["options"])
    except Exception:  # no file, an older one, or a damaged one, which resuming reports
        return None


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
