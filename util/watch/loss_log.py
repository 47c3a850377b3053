"""The two logs of a run: `loss_log.txt`, in the released code's format, and `log.jsonl` for programs.

Both only grow, except that resuming from a checkpoint cuts them to their lengths at that checkpoint.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

TEXT, JSON_LINES = "loss_log.txt", "log.jsonl"


@dataclass(frozen=True)
class LossRecord:
    """The losses of one moment of a training."""

    epoch: int  # the running one, from 1
    iters: int  # images seen in this epoch
    images: int  # images seen in the whole training
    epochs_done: float  # as a fraction: 1.5 is halfway through epoch 2
    losses: Mapping[str, float | None]  # in the order to print; read from a log: None where not finite
    seconds_per_image: float  # waiting for data included
    data_seconds: float  # time per image spent waiting for data
    lr: float

    def line(self) -> str:
        """The line of loss_log.txt, which training prints too."""
        head = f"(epoch: {self.epoch}, iters: {self.iters}"
        head += f", time: {self.seconds_per_image:.3f}, data: {self.data_seconds:.3f}) "
        return head + "".join(f"{name}: {value:.3f} " for name, value in self.losses.items())

    def finite(self) -> dict[str, float]:
        """The losses that are numbers."""
        return {n: value for n, value in self.losses.items() if value is not None and math.isfinite(value)}

    def scalars(self) -> dict[str, float]:
        """What curves show, by tag: losses, rate, epoch and speed."""
        found = {f"loss/{name}": value for name, value in self.losses.items() if value is not None}
        found |= {"training/learning_rate": self.lr, "training/epoch": self.epochs_done}
        return {**found, "training/seconds_per_image": self.seconds_per_image}

    def time_left(self, epochs: float) -> str:
        """How long it takes until `epochs` epochs are done, at this record's speed."""
        images_per_epoch = self.iters / (self.epochs_done - (self.epoch - 1))
        seconds = (epochs - self.epochs_done) * images_per_epoch * self.seconds_per_image
        return tqdm.format_interval(max(0, seconds))


def append(folder: Path, record: LossRecord, header: bool) -> None:
    """Append a line to each log, null for what is not finite; closed again, so a crash loses none."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / TEXT, "a", encoding="utf-8", newline="\n") as file:
        if header:
            file.write(f"================ Training Loss ({time.ctime()}) ================\n")
        file.write(record.line() + "\n")
    losses = {**dict.fromkeys(record.losses), **record.finite()}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    with open(folder / JSON_LINES, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps({"type": "losses", **asdict(record), "losses": losses, "time": now}) + "\n")


def sizes(folder: Path) -> dict[str, int]:
    """The length of each log in bytes."""
    return {name: (folder / name).stat().st_size for name in (TEXT, JSON_LINES) if (folder / name).exists()}


def cut(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut the logs to these lengths. One that is missing or shorter stays as it is. Raises OSError."""
    for name, size in sizes(folder).items():
        if size > lengths.get(name, 0):
            os.truncate(folder / name, lengths.get(name, 0))


def read_loss_records(folder: str | Path) -> list[LossRecord]:
    """The records of a run's `log.jsonl`, in order; lines torn by a crash are skipped."""
    path, names = Path(folder) / JSON_LINES, [field.name for field in fields(LossRecord)]
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            records.append(LossRecord(**{name: entry[name] for name in names}))
    return records
