"""Taking a run's folder for a training: make and lock it, protect another run, find where to start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from util.distributed import restarted_job
from util.errors import UserError
from util.files import remove_leftovers
from util.run.checkpoint import STATE_FILE
from util.run.lock import RunLock
from util.run.replaced import drop_replaced, has_replaced, interrupted, put_back
from util.run.saved_options import FILE as OPTIONS_FILE


def claim_folder(
    folder: Path,
    weights: Path,
    *,
    continues: bool,
    default_start: bool,
    refuse: Callable[[], None],
) -> tuple[RunLock, str]:
    """Take the folder for this training: its lock, and what to start from: "nothing", "weights" or "state".

    A training that torchrun restarted continues without --continue_train if the same job had the folder
    before. A run that an earlier --overwrite set aside, and that nothing has replaced since, is put back.

    Args:
        weights: the generator's file of the checkpoint that a run would continue from.
        continues: whether --continue_train was given.
        default_start: whether `weights` is the latest, for which an exact state may lie beside it.
        refuse: raises UserError where a fresh start would replace an earlier run.

    Raises:
        UserError: the folder cannot be made or written, another process trains in it, a fresh start would
            replace a run, or there is nothing to continue from.
    """
    if continues and not has_replaced(folder):
        starting_point(folder, weights, default_start)  # before a folder is made for a mistyped name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        remove_leftovers(folder)
        job, restarted = restarted_job()
        continues = continues or (restarted and lock.last_job == job)
        _settle_replacement(folder, continues)
        if not continues:
            refuse()
        start = starting_point(folder, weights, default_start) if continues else "nothing"
        lock.note_job(job)
    except OSError as error:
        raise UserError(
            f"the run's folder {str(folder)!r} cannot be used: {error}; choose another --checkpoints_dir"
        ) from None
    return lock, start


def _settle_replacement(folder: Path, continues: bool) -> None:
    """Finish a killed --overwrite: delete the earlier run if the new one has saved, else put it back."""
    if interrupted(folder):
        put_back(folder)
    elif (folder / STATE_FILE).is_file():
        drop_replaced(folder)
    elif not continues:  # to continue is to begin the new run again
        put_back(folder)


def starting_point(folder: Path, weights: Path, default_start: bool) -> str:
    """What a run that continues finds: "state", "weights" or "nothing" (begun, but never saved).

    Raises:
        UserError: no run was begun here.
    """
    if default_start and (folder / STATE_FILE).is_file():
        return "state"
    if weights.is_file():
        return "weights"
    if default_start and (folder / OPTIONS_FILE).is_file():
        return "nothing"  # begun, and ended before its first save
    raise UserError(
        f"{str(folder)!r} has no {weights.name} to continue from: name a run and an --epoch that were saved"
    )
