"""visdom, TensorBoard and Weights & Biases, each a watcher (monitor.py) that needs the package of its name.

Each imports it where it is made, in the main thread: the loader forks workers, in which an import that is
under way in another thread stays locked.
"""

import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from util.console import say
from util.errors import UserError
from util.images import image_grid
from util.watch.loss_log import LossRecord

Images = Mapping[str, np.ndarray]


class Visdom:
    """Shows losses in window `display_id`, images in the next, `ncols` side by side; 0: each has a window."""

    def __init__(self, run: str, server: str, port: int, env: str, display_id: int = 1, ncols: int = 4):
        from visdom import Visdom

        logging.getLogger("visdom").setLevel(logging.CRITICAL)  # its notices would break the progress bar
        self.name = f"visdom at {server}:{port} (--display_id 0 turns it off)"
        self.run, self.display_id, self.ncols = run, display_id, ncols
        self._connect = lambda: Visdom(
            server, port=port, env=env, raise_exceptions=True, use_incoming_socket=False
        )

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._visdom, self._drawn = self._connect(), False
        if records:
            self._draw(records)

    def losses(self, record: LossRecord) -> None:
        self._draw([record])

    def images(self, epoch: int, step: int, images: Images, keep: bool) -> None:
        images = {label: image for label, image in images.items() if not label.startswith("sample")}
        rows = [images] if self.ncols else [{label: image} for label, image in images.items()]
        for number, row in enumerate(rows, start=1):
            grid = image_grid(list(row.values()), self.ncols or 1)
            width = 256 * min(self.ncols or 1, len(row))
            opts = {"title": f"{self.run}: images of epoch {epoch}", "caption": " | ".join(row)}
            opts |= {"width": width, "height": width * grid.shape[0] // grid.shape[1]}
            self._visdom.image(grid.transpose(2, 0, 1), win=str(self.display_id + number), opts=opts)

    def close(self) -> None:
        pass

    def _draw(self, records: Sequence[LossRecord]) -> None:
        """The whole curves at first, later only their new points; gaps for what is not finite."""
        names = list(records[-1].losses)
        x = np.array([record.epochs_done for record in records])
        y = np.array([[record.finite().get(name, math.nan) for name in names] for record in records])
        opts = {"title": f"{self.run}: losses", "legend": names, "xlabel": "epochs", "ylabel": "loss"}
        update = "append" if self._drawn else None
        self._visdom.line(y, x, win=str(self.display_id), opts=opts, update=update)
        self._drawn = True


class TensorBoard:
    """Writes curves, images and options into `folder`, over the number of images trained on."""

    name = "TensorBoard"

    def __init__(self, folder: Path, options: Mapping[str, object]):
        from torch.utils.tensorboard import SummaryWriter

        self._open = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._options = "\n".join(f"    {name}: {value}" for name, value in options.items())

    def begin(self, records: Sequence[LossRecord]) -> None:
        step = records[-1].images + 1 if records else 0  # what earlier files hold from there is dropped
        self._writer = self._open(step)
        self._writer.add_text("options", self._options, step)

    def losses(self, record: LossRecord) -> None:
        for tag, value in record.scalars().items():
            self._writer.add_scalar(tag, value, record.images)
        self._writer.flush()

    def images(self, epoch: int, step: int, images: Images, keep: bool) -> None:
        for label, image in images.items():
            self._writer.add_image(label, image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Logs one run, with its id in `folder`/wandb_run.json to resume; if offline into `folder`/wandb."""

    name = "Weights & Biases"

    def __init__(self, folder: Path, run: str, options: Mapping[str, object]):
        import wandb

        if wandb.setup().settings.mode not in ("offline", "disabled"):
            key = False
            with contextlib.suppress(wandb.errors.AuthenticationError):
                key = wandb.login(prompt=False, verify=False)
            if not key:  # it would ask for one on the terminal
                raise UserError("--use_wandb has no API key: run `wandb login`, or set WANDB_MODE=offline")
        self._wandb, self.run, self.folder, self.options = wandb, run, folder, options

    def begin(self, records: Sequence[LossRecord]) -> None:
        path = self.folder / "wandb_run.json"
        resumes = bool(records) and path.is_file()
        identity = json.loads(path.read_text())["id"] if resumes else secrets.token_hex(4)
        path.write_text(json.dumps({"id": identity}))
        # nothing on the terminal, which has the progress bar, and nothing of the machine or the code
        quiet = {"silent": True, "console": "off", "x_disable_stats": True}
        private = {"disable_code": True, "disable_git": True}
        settings = self._wandb.Settings(**quiet, **private, init_timeout=20, finish_timeout=8)
        who = {"project": os.environ.get("WANDB_PROJECT", "QS-Attn"), "name": self.run, "id": identity}
        what = {"resume": "allow" if resumes else None, "dir": str(self.folder), "config": self.options}
        self._run = self._wandb.init(**who, **what, settings=settings)
        say(f"{self.name}: {self._run.url or self._run.dir}")

    def losses(self, record: LossRecord) -> None:
        self._run.log(record.scalars(), step=record.images)

    def images(self, epoch: int, step: int, images: Images, keep: bool) -> None:
        caption = f"epoch {epoch}"
        pictures = {label: self._wandb.Image(image, caption=caption) for label, image in images.items()}
        self._run.log(pictures, step=step)

    def close(self) -> None:
        self._run.finish()
