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

from util.console import say
from util.files import write_atomically
from util.watch.background import BackgroundCalls
from util.watch.loss_log import LossRecord

IDENTITY_FILE = "wandb_run.json"
PATIENCE_AT_END = 8.0  # seconds to send what still waits
INIT_TIMEOUT = 20.0  # seconds for wandb to begin the run; training continues meanwhile


class WandbRun:
    """Logs one run with wandb's client; a `Watcher`.

    The step of every curve is the number of images trained on. wandb is called by a thread. A run cannot take
    steps back, so after a resume those between the checkpoint and the newest one shown are not sent again.

    Args:
        folder: of the run, `checkpoints/NAME`.
        run: its name.
        project: of Weights & Biases.
        options: of the run, shown as its configuration.
    """

    name, live = "Weights & Biases", True

    def __init__(self, folder: str | Path, run: str, project: str, options: Mapping[str, object]):
        import wandb  # here, not in the thread: see VisdomClient

        self.folder, self.run, self.project = Path(folder), run, project
        self.options = {name: str(v) if v == math.inf else v for name, v in options.items()}
        self._wandb = wandb
        self._calls = BackgroundCalls(self.name)
        self._begun = False
        self._step = 0  # images trained on, of the newest record
        # Used by the thread alone.
        self._run = None
        self._shown_before = -1  # the newest step that earlier sessions have sent

    def resume(self, records: Sequence[LossRecord]) -> None:
        self._step = records[-1].images if records else 0
        self._begin(continues=True)

    def losses(self, record: LossRecord) -> None:
        self._begin(continues=False)
        self._step = record.images
        values = {f"loss/{name}": value for name, value in record.losses.items() if value is not None}
        values |= {
            "training/learning_rate": record.lr,
            "training/epoch": record.epochs_done,
            "training/seconds_per_image": record.seconds_per_image,
        }
        self._calls.put(lambda: self._send(values, record.images))

    def images(self, epoch: int, images: Mapping[str, np.ndarray]) -> None:
        self._begin(continues=False)
        step, caption = self._step, f"epoch {epoch}"
        self._calls.put(
            lambda: self._send(
                {label: self._wandb.Image(image, caption=caption) for label, image in images.items()}, step
            )
        )

    def close(self) -> None:
        self._calls.put(lambda: self._run and self._run.finish())
        self._calls.close(PATIENCE_AT_END)

    def _begin(self, continues: bool) -> None:
        """Begin wandb's run with the session's first call, or continue the one of the run's folder."""
        if not self._begun:
            self._begun = True
            self._calls.put(lambda: self._open(continues))

    def _open(self, continues: bool) -> None:
        path = self.folder / IDENTITY_FILE
        saved = json.loads(path.read_text()) if continues and path.is_file() else None
        self._id = saved["id"] if saved else secrets.token_hex(4)
        settings = self._wandb.Settings(
            # Nothing on the terminal, which has the progress bar, and nothing of the machine or the code.
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_stats=True,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=PATIENCE_AT_END,
        )
        self._run = self._wandb.init(
            project=self.project,
            name=self.run,
            id=self._id,
            resume="allow" if saved else None,
            dir=str(self.folder),
            config=self.options,
            settings=settings,
        )
        self._shown_before = max(saved["images"] if saved else -1, self._run.step - 1)
        where = str(Path(self._run.dir).parent) if self._run.offline else self._run.url
        say(f"Weights & Biases: {where}")

    def _send(self, values: Mapping[str, object], step: int) -> None:
        if step <= self._shown_before:
            return
        self._run.log(values, step=step)
        identity = json.dumps({"id": self._id, "images": step})
        write_atomically(self.folder / IDENTITY_FILE, lambda path: path.write_text(identity))


def login_obstacle() -> str:
    """Why wandb would ask for a key on the terminal, or refuse the one it has; empty if it would not.

    No server is asked: one that cannot be reached costs a training a warning, not its start.
    """
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled"):
        return ""
    found = "wandb has no API key"
    try:
        if wandb.login(prompt=False, verify=False):
            return ""
    except wandb.errors.AuthenticationError as error:
        found = str(error)
    return f"{found}: run `wandb login` first, or set WANDB_MODE=offline to write files only"
