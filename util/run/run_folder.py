"""The folder of a run: made, locked, kept from another run of the same name, and what it holds to go on from."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from options.base_options import option_values, read_saved_options
from options.train_options import OF_THE_CALL, TrainOptions
from util.distributed import restarted_job
from util.errors import UserError
from util.files import remove_leftovers
from util.run.checkpoint import STATE_FILE
from util.run.run_lock import RunLock
from util.watch.loss_log import JSON_LINES, TEXT

LOGS = (TEXT, JSON_LINES)


def claim_folder(
    opt: Namespace, folder: Path, epoch: str, defaults: dict[str, object]
) -> tuple[RunLock, str]:
    """Take the folder for this training: its lock, and what to begin with, "nothing", or of `epoch` "weights" or "state".

    A training that torchrun restarted goes on by itself, if it was this very job that had the folder before.

    Raises:
        UserError: the folder cannot be made or written, another process trains in it, a fresh start would write over a run, or
            there is nothing to go on from.
    """
    if opt.continue_train:
        starting_point(folder, epoch)  # before a folder is made for a name that was only mistyped
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        remove_leftovers(folder)
        job, restarted = restarted_job()
        continues = opt.continue_train or (restarted and lock.last_job == job)
        if not continues:
            refuse_another_run(opt, folder, defaults)
        start = starting_point(folder, epoch) if continues else "nothing"
        if start == "nothing":
            for log in LOGS:  # an earlier start, which saved nothing, may have begun them
                (folder / log).unlink(missing_ok=True)
        lock.note_job(job)
    except OSError as error:
        raise UserError(
            f"the run's folder {str(folder)!r} cannot be used: {error}; choose another --checkpoints_dir"
        ) from None
    return lock, start


def starting_point(folder: Path, epoch: str) -> str:
    """What a run that continues finds at `epoch` ("latest", "5", "iter_5000"): "state", "weights" or "nothing".

    Raises:
        UserError: there is nothing, though a run was not just begun here.
    """
    if epoch == "latest" and (folder / STATE_FILE).is_file():
        return "state"
    if (folder / f"{epoch}_net_G.pth").is_file():
        return "weights"
    if epoch == "latest" and (folder / "train_opt.json").is_file():
        return "nothing"  # begun, and ended before its first save
    raise UserError(
        f"{str(folder)!r} has no {epoch}_net_G.pth to go on from: name a run and an --epoch that were saved"
    )


def refuse_another_run(opt: Namespace, folder: Path, defaults: dict[str, object]) -> None:
    """UserError where a fresh start would write over an earlier run, unless --overwrite says so."""
    if not (folder / STATE_FILE).exists() and not list(folder.glob("*_net_G.pth")):
        return
    if opt.overwrite:
        # What a resume would take for its own goes at once; checkpoints of single epochs go as new ones replace them.
        for path in [folder / STATE_FILE, *folder.glob("latest_net_*.pth")]:
            path.unlink(missing_ok=True)
        return
    saved = read_saved_options(folder, TrainOptions().parser) or {}
    now = option_values(opt)
    differing = [
        f"{name}: {saved[name]} there, {now[name]} now"
        for name in sorted(defaults)
        if name in saved
        and name not in OF_THE_CALL
        and saved[name] != now[name]
        and str(saved[name]) != str(now[name])
    ]
    difference = "\nIts options differ:\n  " + "\n  ".join(differing) if differing else ""
    raise UserError(
        f"there is a run in {folder} already: give --continue_train to go on with it, another --name to keep both, "
        f"or --overwrite to start afresh in its place{difference}"
    )
