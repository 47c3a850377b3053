"""Saving a run so that it can be continued exactly, and continuing it.

`{latest|N|iter_N}_net_{G,D,F}.pth` are the weights in the released format, for everybody. `latest_state.pth` is the whole
state of the training in one file, weights included, so a resume never mixes two saves: the file is written beside its
place, flushed to disk, read back and checked, and only then put in the place of the one before.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.cut_model import CUTModel
from models.weights import load_weights, save_weights
from util.errors import UserError
from util.files import write_atomically

FORMAT = 1
STATE_FILE = "latest_state.pth"


@dataclass
class Progress:
    """Where a training stands: the epoch (from 1), images done in it, images and steps done in all, over all processes."""

    epoch: int = 1
    position: int = 0
    images: int = 0
    steps: int = 0
    loss_G_sum: float = 0.0  # over the steps of this epoch, for the plateau schedule
    epoch_steps: int = 0

    def advance(self, batch: int) -> None:
        """A step on `batch` images is done."""
        self.position += batch
        self.images += batch
        self.steps += 1
        self.epoch_steps += 1

    def crossed(self, frequency: int, batch: int) -> bool:
        """Whether the last step went over a multiple of `frequency` images, whatever the batch size."""
        return self.images // frequency > (self.images - batch) // frequency

    def next_epoch(self) -> None:
        """The epoch is done."""
        self.epoch += 1
        self.position = self.epoch_steps = 0
        self.loss_G_sum = 0.0


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        extra: name -> (state getter, state setter) of what else belongs to the state, such as logs.
    """

    def __init__(
        self, folder: Path, model: CUTModel, extra: dict[str, tuple[Callable, Callable]] | None = None
    ):
        self.folder = folder
        self.model = model
        self.extra = extra or {}

    def save(self, progress: Progress, *names: str) -> None:
        """Save the weights under each of `names` ("latest", "5", "iter_5000"), and the state. OSError where that fails.

        Numbered weights come before the state, since a resume would not come back to them, and the latest after it, since
        without a state they would pass for a run that has none.
        """
        for name in names:
            if name != "latest":
                self.save_weights(name)
        state = {
            "format": FORMAT,
            "progress": asdict(progress),
            "model": self.model.training_state(),
            "random": random_state(),
            **{name: get() for name, (get, _) in self.extra.items()},
        }
        write_atomically(
            self.folder / STATE_FILE, lambda path: torch.save(state, path), verify=verify_archive
        )
        if "latest" in names:
            self.save_weights("latest")

    def save_weights(self, name: str) -> None:
        """Save the networks alone. OSError where that fails."""
        for network, net in self.model.networks.items():
            save_weights(net, self.folder / f"{name}_net_{network}.pth")

    def resume(self) -> Progress:
        """Put model, random generators and logs back to where the state was saved. UserError where it cannot be read."""
        path = self.folder / STATE_FILE
        try:
            verify_archive(path)  # torch.load takes damaged numbers as they are
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = dict(state)["format"]
        except Exception as error:  # torch meets damaged files with exceptions of every type
            raise UserError(
                f"{path} is no readable state of a training ({_first_line(error)}); without it the run can go on from its "
                "weights alone: remove the file and use --continue_train --epoch latest"
            ) from None
        if found != FORMAT:
            raise UserError(
                f"{path} has format {found}, but this version reads format {FORMAT}: use the version that wrote it"
            )
        try:
            self.model.load_training_state(state["model"])
            set_random_state(state["random"])
            for name, (_, put) in self.extra.items():
                if name in state:
                    put(state[name])
            return Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} was saved with other networks than these options build, or is damaged ({_first_line(error)}): "
                "give --continue_train without options that change the networks"
            ) from None

    def load_weights(self, folder: Path, epoch: str) -> list[str]:
        """Load the networks saved in `folder` at `epoch`, G at least; return the names of those found."""
        found = [name for name in self.model.networks if (folder / f"{epoch}_net_{name}.pth").is_file()]
        if "G" not in found:
            raise UserError(
                f"{folder} has no {epoch}_net_G.pth to start from: name a run and an --epoch that were saved"
            )
        for name in found:
            load_weights(self.model.networks[name], folder / f"{epoch}_net_{name}.pth", self.model.opt)
        return found


def _first_line(error: Exception) -> str:
    """The beginning of what an exception says, or its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def verify_archive(path: Path) -> None:
    """Read a file written by torch.save back from disk and check its checksums. OSError where they are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"{path.name} is damaged: {error}") from None
    if broken is not None:
        raise OSError(f"{path.name} is damaged: its checksum of {broken} is not that of what was written")


def random_state() -> dict:
    """The state of every random generator, as tensors and plain numbers."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Continue the random generators from `random_state()`; a GPU's only where there is one now."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
