"""A run's folder over its life: claimed for one training, begun or continued, saved to, closed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from util import distributed
from util.arguments import Option
from util.console import say
from util.distributed import restarted_job
from util.errors import UserError
from util.files import remove_leftovers
from util.run.checkpoint import STATE_FILE, Checkpoints, options_in_state
from util.run.lock import RunLock
from util.run.progress import Progress
from util.run.saved_options import (
    FILE,
    changed_options,
    checked,
    option_values,
    read_saved_options,
    write_options,
)
from util.watch.loss_log import JSON_LINES, TEXT
from util.watch.monitor import Monitor, create_monitor


def run_folder(options: Mapping[str, object]) -> Path:
    """The folder of the run that options name, checkpoints_dir / (name + suffix), or UserError."""
    name = str(options["name"])
    if options.get("suffix"):
        name += f"_{options['suffix']}"
    if not name or Path(name).is_absolute() or {".", ".."} & set(name.split("/")):
        raise UserError(f"--name {name!r} is no name of a folder under --checkpoints_dir")
    return Path(str(options["checkpoints_dir"])) / name


def options_of_training(folder: Path, options: Mapping[str, Option]) -> dict[str, object]:
    """The options that the training in `folder` has saved: of its state, which are sure to be its own."""
    if (saved := options_in_state(folder)) is not None:
        return checked(saved, options, folder / STATE_FILE)
    return read_saved_options(folder, options) or {}


def holds_run(folder: Path) -> bool:
    """Whether a run in `folder` has saved anything that could be continued or translated with."""
    return (folder / STATE_FILE).exists() or any(folder.glob("*_net_*.pth"))


class Run:
    """The run that a training's options name. Only the first process writes.

    Args:
        options: the table of options.
        network: the network that translates, without whose weights there is nothing to continue from.

    Attributes:
        start: where training begins: "state" (the exact place where the run stopped), "weights" or "nothing".
        monitor: shows the training; None in the other processes.
    """

    def __init__(self, opt: Namespace, options: Mapping[str, Option], network: str):
        self.opt, self.options = opt, options
        self.folder = run_folder(vars(opt))
        self.writes = distributed.rank() == 0 and not opt.dry_run
        # --epoch counts only where it was given; otherwise it may be what an earlier call has saved
        self.epoch = opt.epoch if "epoch" in opt.given else "latest"
        self.weights = self.folder / f"{self.epoch}_net_{network}.pth"
        self.lock: RunLock | None = None
        self.monitor: Monitor | None = None
        self.start = "nothing" if opt.dry_run else distributed.from_first(self._claim)
        if self.start == "weights" and self.epoch.isdecimal() and "epoch_count" not in opt.given:
            opt.epoch_count = int(self.epoch) + 1

    def _claim(self) -> str:
        """Lock the folder; return the `start`."""
        continues = self.opt.continue_train
        if continues:
            self._starting_point()  # before a folder is made for a mistyped name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = RunLock(self.folder)
            remove_leftovers(self.folder)
        except OSError as error:
            raise UserError(f"the run's folder {str(self.folder)!r} cannot be used: {error}") from None
        job, restarted = restarted_job()
        if continues or (restarted and self.lock.last_job == job):
            return self._starting_point()
        if holds_run(self.folder) and not self.opt.overwrite:
            self._refuse_to_replace()
        return "nothing"

    def _starting_point(self) -> str:
        if self.epoch == "latest" and (self.folder / STATE_FILE).is_file():
            return "state"
        if self.weights.is_file():
            return "weights"
        if self.epoch == "latest" and (self.folder / FILE).is_file():
            return "nothing"  # begun, and ended before its first save
        raise UserError(f"{str(self.folder)!r} has no {self.weights.name} to continue from")

    def _refuse_to_replace(self) -> None:
        saved = options_of_training(self.folder, self.options)
        differing = changed_options(saved, self.opt, self.options, ("run", "fixed", "watch"))
        difference = "\nIts options differ:\n  " + "\n  ".join(differing) if differing else ""
        raise UserError(
            f"there is a run in {self.folder} already: give --continue_train to continue it, another --name "
            f"to keep both, or --overwrite to begin a new one, which renames it{difference}"
        )

    def begin(
        self, model, files: object, compare_files: Callable, epoch_steps: int, global_batch: int
    ) -> Progress:
        """Load what training starts from, and return where it stands.

        `files` identify the images; `compare_files` (saved, present) says how they differ. `global_batch` are
        the images of a step over all processes.
        """
        opt = self.opt
        progress = Progress(epoch=opt.epoch_count)
        if self.start == "nothing":
            if opt.pretrained_name:
                found = model.load_networks(Path(opt.checkpoints_dir, opt.pretrained_name), opt.epoch)
                say(f"Starting from the weights of {opt.pretrained_name}: {', '.join(found)}.")
            elif opt.continue_train:
                say(f"Nothing was saved in {self.folder} yet: starting at the beginning.")
        if self.start == "nothing" and self.writes:
            self._begin_folder()  # only now: nothing that could fail before the first step has
        if self.writes:
            self.lock.note_job(restarted_job()[0])
            self.monitor = create_monitor(opt, self.folder, epoch_steps)
        differences: list[str] = []
        parts = {
            "options": (lambda: option_values(opt), lambda saved: None),
            "data": (lambda: files, lambda saved: differences.extend(compare_files(saved, files))),
        }
        if self.monitor:
            parts["logs"] = (self.monitor.state_dict, self.monitor.load_state_dict)
        self.checkpoints = Checkpoints(self.folder, model, parts, self.writes)
        if self.start == "state":
            progress = self.checkpoints.resume()
            if "epoch_count" in opt.given:
                progress.move_to_epoch(opt.epoch_count)
            if progress.position % global_batch:
                raise UserError(
                    f"the run stopped after {progress.position} images of its epoch, no multiple of the "
                    f"global batch, {global_batch}: resume with the global batch it was trained with, "
                    f"or begin the next epoch with --epoch_count {progress.epoch + 1}"
                )
            say(f"Continuing in epoch {progress.epoch} after {progress.images} images.")
            if self.writes:  # a killed run may not have come to saving these
                model.save_networks(self.folder, "latest")
        elif self.start == "weights":
            found = ", ".join(model.load_networks(self.folder, self.epoch))
            say(f"Continuing from the weights alone ({found}) in epoch {progress.epoch}.")
        model.schedule.begin(progress.epoch, progress.steps)
        if self.start != "nothing":
            self._note_changes(differences)
        self.progress = progress
        self.options_saved = self.start == "nothing"
        return progress

    def _begin_folder(self) -> None:
        """Make room for a fresh start, and save its options."""
        if holds_run(self.folder):
            self.lock.release()  # Windows renames no folder with an open file
            say(f"The run before is kept in {rename_aside(self.folder)}.")
            self.folder.mkdir()
            self.lock = RunLock(self.folder)
        for log in (TEXT, JSON_LINES):  # of a start that saved nothing
            (self.folder / log).unlink(missing_ok=True)
        self._write_options()

    def _write_options(self) -> None:
        defaults = {name: option.default for name, option in self.options.items()}
        write_options(self.folder, self.opt, defaults)

    def _note_changes(self, data: list[str]) -> None:
        """Say which images and options are no longer those that the run was saved with."""
        if data:
            say(f"note: the images are not those of the run so far: {'; '.join(data)}")
        before = options_of_training(self.folder, self.options)
        if changed := changed_options(before, self.opt, self.options, ("run",)):
            say(f"note: options are not those of the run so far: {'; '.join(changed)}")

    def check_folder(self) -> None:
        """UserError where the folder was moved or deleted: another run may have taken its place."""
        if self.writes and not self.lock.is_in_place():
            raise UserError(f"training stopped: {self.folder} is no longer the folder of this run")

    def save(self, *names: str) -> None:
        """Save the run under `names`. All processes call it together. UserError where that fails."""
        try:
            self.check_folder()
            self.checkpoints.save(self.progress, *names)
            if self.writes and not self.options_saved:
                self._write_options()
                self.options_saved = True
        except OSError as error:
            raise UserError(
                f"the checkpoint could not be saved in {self.folder}: {error}. The last good one stays; make "
                "room, then give --continue_train"
            ) from None

    def close(self) -> None:
        """Finish the page and let others train in the folder."""
        if self.monitor:
            self.monitor.close()
        if self.lock:
            self.lock.release()


def rename_aside(folder: Path) -> Path:
    """Rename a run's folder to the first free NAME.replaced-N. UserError where that fails."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    try:
        return folder.rename(aside)
    except OSError as error:
        raise UserError(f"the run in {folder} cannot be renamed: {error}; choose another --name") from None
