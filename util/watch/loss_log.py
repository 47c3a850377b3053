"""The two logs of a training run: `loss_log.txt`, which users parse, and `log.jsonl`, which programs read.

`loss_log.txt` keeps the line format of the released code to the letter. `log.jsonl` holds one JSON object a
line: the records of type "losses", and whatever else is told through `event`. Both only ever grow, except
that going back to a checkpoint cuts them to what they held when it was written.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

TEXT, JSON_LINES = "loss_log.txt", "log.jsonl"


def loss_line(
    epoch: int, iters: int, seconds_per_image: float, data_seconds: float, losses: Mapping[str, float]
) -> str:
    """A line of loss_log.txt, which training prints too."""
    head = f"(epoch: {epoch}, iters: {iters}, time: {seconds_per_image:.3f}, data: {data_seconds:.3f}) "
    return head + "".join(f"{name}: {value:.3f} " for name, value in losses.items())


class LossLog:
    """Appends to the two logs of a run folder. Every method raises OSError where the disk refuses.

    Files are opened for each line: nothing is lost in a crash, at a cost of microseconds.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._headed = False  # the header of this session comes with its first line, hence after a truncation

    def losses(
        self,
        *,
        epoch: int,
        iters: int,
        images: int,
        epochs_done: float,
        losses: Mapping[str, float],
        seconds_per_image: float,
        data_seconds: float,
        lr: float,
    ) -> None:
        """Write one line in each log.

        Args:
            epoch: number of the running epoch, from 1.
            iters: images seen in this epoch.
            images: images seen in the whole training.
            epochs_done: the same in epochs, as a fraction: 1.5 is half-way through epoch 2.
            losses: name -> value, in the order to print.
            seconds_per_image: computing time.
            data_seconds: time spent waiting for data.
            lr: learning rate.
        """
        if not self._headed:
            self._append(TEXT, f"================ Training Loss ({time.ctime()}) ================\n")
            self._headed = True
        self._append(TEXT, loss_line(epoch, iters, seconds_per_image, data_seconds, losses) + "\n")
        self.event(
            "losses",
            epoch=epoch,
            iters=iters,
            images=images,
            epochs_done=epochs_done,
            lr=lr,
            seconds_per_image=seconds_per_image,
            data_seconds=data_seconds,
            losses=dict(losses),
        )

    def event(self, type: str, **fields: Any) -> None:
        """Write a record of another type to `log.jsonl`; numbers that are not finite become null."""
        record = {"type": type, **fields, "time": datetime.now().astimezone().isoformat(timespec="seconds")}
        self._append(JSON_LINES, json.dumps(_jsonable(record), allow_nan=False) + "\n")

    def state_dict(self) -> dict[str, int]:
        """The length of each log in bytes, to be kept in a checkpoint."""
        return {name: _size(self.folder / name) for name in (TEXT, JSON_LINES)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the logs back to the lengths of a checkpoint. A file that is missing or shorter stays as is."""
        for name in (TEXT, JSON_LINES):
            if _size(self.folder / name) > state.get(name, math.inf):
                os.truncate(self.folder / name, state[name])

    def _append(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / name, "a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)


def read_loss_records(folder: str | Path) -> list[dict[str, Any]]:
    """The records of type "losses" in a run folder, in order; [] where there is no log.

    A line torn by a crash is passed over. Where a run was started anew or resumed, the later records replace
    earlier ones, so that the number of images seen always increases.
    """
    records: list[dict[str, Any]] = []
    path = Path(folder) / JSON_LINES
    if not path.exists():
        return records
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and record.get("type") == "losses":
                while records and records[-1]["images"] >= record["images"]:
                    records.pop()
                records.append(record)
    return records


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _jsonable(value: Any) -> Any:
    """The value in JSON's own types: no NaN or infinity, and text for what JSON does not know."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    try:
        number = float(value)  # a float, or a scalar of NumPy or torch
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
