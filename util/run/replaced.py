"""Replacing a run: the files of the run before are set aside until the new one has saved its first state.

They lie in `.replaced/` inside the run's folder. A training that ends before its first save puts them back.
After a `kill -9` the next training of that name does.

`train_opt.json` is the first file to leave and the last to come back. So a folder with `.replaced/` but
without `train_opt.json` was interrupted while files were moved.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from util.run.checkpoint import STATE_FILE
from util.run.saved_options import ASIDE
from util.run.saved_options import FILE as OPTIONS_FILE
from util.watch.loss_log import JSON_LINES, TEXT

LOGS = (TEXT, JSON_LINES)
# What belongs to a run. Weights of single epochs too: an evaluation of all epochs would mix two runs.
_WRITTEN = (OPTIONS_FILE, "train_opt.txt", STATE_FILE, "*_net_*.pth", *LOGS, "web")


def set_aside(folder: Path) -> None:
    """Move what a new run would write over into `.replaced/`; what is there already is kept.

    Raises:
        OSError: a file could not be moved.
    """
    aside = folder / ASIDE
    if aside.is_dir():  # an earlier start in its place saved nothing: the run to keep is the one before it
        _remove(folder)
        return
    files = [path for pattern in _WRITTEN for path in folder.glob(pattern)]
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)


def put_back(folder: Path) -> bool:
    """Undo `set_aside` and delete what the new run has written; return whether files were set aside.

    Raises:
        OSError: a file could not be moved.
    """
    aside = folder / ASIDE
    if not aside.is_dir():
        return False
    if (folder / OPTIONS_FILE).exists():  # else what lies beside `.replaced/` is the old run's
        _remove(folder)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == OPTIONS_FILE):
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.rename(folder / path.name)
    aside.rmdir()
    return True


def drop_replaced(folder: Path) -> None:
    """Delete the files set aside: the new run has saved."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def has_replaced(folder: Path) -> bool:
    """Whether files of an earlier run are set aside."""
    return (folder / ASIDE).is_dir()


def interrupted(folder: Path) -> bool:
    """Whether files are set aside for a new run that has not begun."""
    return has_replaced(folder) and not (folder / OPTIONS_FILE).exists()


def clear_logs(folder: Path) -> None:
    """Delete the logs of a start that saved nothing."""
    for log in LOGS:
        (folder / log).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Delete what the new run has written, its options first."""
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
