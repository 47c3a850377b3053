"""The two logs of a training run: `loss_log.txt` for people and parsers, `log.jsonl` for programs.

`loss_log.txt` has the line format of the released code, to the letter. `log.jsonl` holds one JSON object per
line. Both only grow, except that resuming from a checkpoint cuts them to their lengths at that checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

TEXT, JSON_LINES = "loss_log.txt", "log.jsonl"


@dataclass(frozen=True)
class LossRecord:
    """The losses of one moment of a training.

    Attributes:
        epoch: the running epoch, from 1.
        iters: images seen in this epoch.
        images: images seen in the whole training.
        epochs_done: the same in epochs, as a fraction: 1.5 is halfway through epoch 2.
        losses: in the order to print; those read from a log are None where they were not finite.
        seconds_per_image: waiting for data included.
        data_seconds: time per image spent waiting for data.
        lr: learning rate.
    """

    epoch: int
    iters: int
    images: int
    epochs_done: float
    losses: Mapping[str, float | None]
    seconds_per_image: float
    data_seconds: float
    lr: float

    def line(self) -> str:
        """The line of loss_log.txt, which training prints too."""
        head = f"(epoch: {self.epoch}, iters: {self.iters}"
        head += f", time: {self.seconds_per_image:.3f}, data: {self.data_seconds:.3f}) "
        return head + "".join(f"{name}: {value:.3f} " for name, value in self.losses.items())

    def scalars(self) -> dict[str, float]:
        """What curves show, by tag: losses, rate, epoch and speed."""
        losses = {f"loss/{name}": value for name, value in self.losses.items() if value is not None}
        return losses | {
            "training/learning_rate": self.lr,
            "training/epoch": self.epochs_done,
            "training/seconds_per_image": self.seconds_per_image,
        }

    def seconds_left(self, epochs: float) -> float:
        """Time until `epochs` epochs are done, at this record's speed."""
        images_per_epoch = self.iters / (self.epochs_done - (self.epoch - 1))
        return (epochs - self.epochs_done) * images_per_epoch * self.seconds_per_image


class LossLog:
    """Appends records to the logs of a run's folder. Every method raises OSError if the disk refuses.

    The files are opened for each record: a crash loses nothing, at a cost of microseconds.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._has_header = False  # written with this session's first line, hence after a truncation

    def losses(self, record: LossRecord) -> None:
        """Append one line to each log; in log.jsonl, values that are not finite become null."""
        if not self._has_header:
            self._append(TEXT, f"================ Training Loss ({time.ctime()}) ================\n")
            self._has_header = True
        self._append(TEXT, record.line() + "\n")
        finite = {name: value if math.isfinite(value) else None for name, value in record.losses.items()}
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        entry = {"type": "losses", **asdict(record), "losses": finite, "time": now}
        self._append(JSON_LINES, json.dumps(entry) + "\n")

    def state_dict(self) -> dict[str, int]:
        """The length of each log in bytes, for a checkpoint."""
        return {name: _size(self.folder / name) for name in (TEXT, JSON_LINES)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the logs to the lengths of a checkpoint. A file that is missing or shorter stays as it is."""
        for name in (TEXT, JSON_LINES):
            if _size(self.folder / name) > state.get(name, math.inf):
                os.truncate(self.folder / name, state[name])

    def _append(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / name, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def read_loss_records(folder: str | Path) -> list[LossRecord]:
    """The records of a run's `log.jsonl`, in order; lines torn by a crash are skipped."""
    path, names = Path(folder) / JSON_LINES, [field.name for field in fields(LossRecord)]
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            records.append(LossRecord(**{name: entry[name] for name in names}))
    return records


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
