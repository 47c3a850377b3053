"""The curves, images and options of a run in Weights & Biases, online or, with WANDB_MODE=offline, in files.

wandb's files are in `checkpoints/NAME/wandb`, the run's id in `checkpoints/NAME/wandb_run.json`, so that
a resume continues the same run. Needs the package wandb.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import wandb

from util.console import say
from util.files import write_atomically
from util.watch.loss_log import LossRecord

IDENTITY_FILE = "wandb_run.json"


class WandbRun:
    """Logs one run with wandb's client; a `Watcher`.

    The step of every curve is the number of images trained on. A run cannot take steps back, so after a
    resume those between the checkpoint and the newest one shown are not sent again.
    """

    name, live = "Weights & Biases", True

    def __init__(self, folder: Path, run: str, project: str, options: Mapping[str, object]):
        self.run, self.project, self.folder = run, project, folder
        self.options = {name: str(v) if v == math.inf else v for name, v in options.items()}

    def begin(self, records: Sequence[LossRecord]) -> None:
        path = self.folder / IDENTITY_FILE
        saved = json.loads(path.read_text()) if records and path.is_file() else {}
        self._id = saved.get("id", secrets.token_hex(4))
        # nothing on the terminal, which has the progress bar, and nothing of the machine or the code
        quiet = {"silent": True, "console": "off", "x_disable_stats": True}
        private = {"disable_code": True, "disable_git": True}
        self._run = wandb.init(
            project=self.project,
            name=self.run,
            id=self._id,
            resume="allow" if saved else None,
            dir=str(self.folder),
            config=self.options,
            settings=wandb.Settings(**quiet, **private, init_timeout=20, finish_timeout=8),
        )
        say(f"{self.name}: {self._run.url or self._run.dir}")
        self._shown = max(saved.get("images", -1), self._run.step - 1)  # the newest step of earlier sessions

    def losses(self, record: LossRecord) -> None:
        self._send(record.scalars(), record.images)

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        pictures = {label: wandb.Image(image, caption=f"epoch {epoch}") for label, image in images.items()}
        self._send(pictures, step)

    def close(self) -> None:
        self._run.finish()

    def _send(self, values: Mapping[str, object], step: int) -> None:
        if step > self._shown:
            self._run.log(values, step=step)
            identity = json.dumps({"id": self._id, "images": step})
            write_atomically(self.folder / IDENTITY_FILE, lambda path: path.write_text(identity))


def login_obstacle() -> str:
    """Why wandb would ask for a key on the terminal, or refuse the one it has; empty if it would not.

    No server is asked: one that cannot be reached costs a training a warning, not its start.
    """
    if wandb.setup().settings.mode in ("offline", "disabled"):
        return ""
    found = "wandb has no API key"
    try:
        if wandb.login(prompt=False, verify=False):
            return ""
    except wandb.errors.AuthenticationError as error:
        found = str(error)
    return f"{found}: run `wandb login` first, or set WANDB_MODE=offline to write files only"
