"""The curves, images and options of a run in Weights & Biases, online or, with WANDB_MODE=offline, in files.

wandb's files are in `checkpoints/NAME/wandb`, the run's id in `checkpoints/NAME/wandb_run.json`, so that
a resume continues the same run. Needs the package wandb.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import wandb

from util.console import say
from util.watch.loss_log import LossRecord


class WandbRun:
    """Logs one run, over the number of images trained on; a `Watcher`."""

    name, live = "Weights & Biases", True

    def __init__(self, folder: Path, run: str, options: Mapping[str, object]):
        self.run, self.folder = run, folder
        self.options = {name: str(v) if v == math.inf else v for name, v in options.items()}

    def begin(self, records: Sequence[LossRecord]) -> None:
        path = self.folder / "wandb_run.json"
        resumes = bool(records) and path.is_file()
        identity = json.loads(path.read_text())["id"] if resumes else secrets.token_hex(4)
        path.write_text(json.dumps({"id": identity}))
        # nothing on the terminal, which has the progress bar, and nothing of the machine or the code
        quiet = {"silent": True, "console": "off", "x_disable_stats": True}
        private = {"disable_code": True, "disable_git": True}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "QS-Attn"),
            name=self.run,
            id=identity,
            resume="allow" if resumes else None,
            dir=str(self.folder),
            config=self.options,
            settings=wandb.Settings(**quiet, **private, init_timeout=20, finish_timeout=8),
        )
        say(f"{self.name}: {self._run.url or self._run.dir}")

    def losses(self, record: LossRecord) -> None:
        self._run.log(record.scalars(), step=record.images)

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        pictures = {label: wandb.Image(image, caption=f"epoch {epoch}") for label, image in images.items()}
        self._run.log(pictures, step=step)

    def close(self) -> None:
        self._run.finish()


def login_obstacle() -> str:
    """Why wandb would ask for a key on the terminal, or refuse the one it has; empty if it would not."""
    if wandb.setup().settings.mode in ("offline", "disabled"):
        return ""
    try:
        found = "" if wandb.login(prompt=False, verify=False) else "wandb has no API key"
    except wandb.errors.AuthenticationError as error:
        found = str(error)
    return found and f"{found}: run `wandb login` first, or set WANDB_MODE=offline to write files only"
