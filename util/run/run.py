"""A run's folder over its life: claimed for one training, begun or continued, checked, saved to, closed."""

import itertools
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from util import distributed
from util.arguments import ArgumentParser
from util.console import say
from util.errors import UserError, lacks_memory
from util.files import remove_leftovers
from util.run.checkpoint import STATE_FILE, load_state, save_state, set_random_state
from util.run.lock import RunLock
from util.run.progress import Progress
from util.run.saved_options import FILE, changed_options, option_values, write_options
from util.watch.loss_log import JSON_LINES, TEXT
from util.watch.monitor import Monitor, create_monitor

REMEMBERED = 1000  # steps whose images are known; on CUDA the guard reports a failure some steps late


def run_folder(options: Mapping[str, object]) -> Path:
    """The folder of the run that options name, checkpoints_dir / (name + suffix), or UserError."""
    name = "_".join(filter(None, (str(options["name"]), options.get("suffix"))))
    if not name or Path(name).is_absolute() or {".", ".."} & set(name.split("/")):
        raise UserError(f"--name {name!r} is no name of a folder under --checkpoints_dir")
    return Path(str(options["checkpoints_dir"])) / name


def holds_run(folder: Path) -> bool:
    """Whether a run in `folder` has saved anything that could be continued or translated with."""
    return (folder / STATE_FILE).exists() or any(folder.glob("*_net_*.pth"))


class Run:
    """The run that a training's options name. Only the first process writes, and has a `monitor`.

    `parser` has their table, and `network` is the one that translates. Training starts from the saved "state"
    (the exact place where the run stopped), "weights" or "nothing".
    """

    def __init__(self, opt: Namespace, parser: ArgumentParser, network: str):
        self.opt, self.parser = opt, parser
        self.folder = run_folder(vars(opt))
        self.writes = distributed.rank() == 0 and not opt.dry_run
        # --epoch counts only where it was given; otherwise it may be what an earlier call has saved
        self.epoch = opt.epoch if "epoch" in opt.given else "latest"
        self.weights = self.folder / f"{self.epoch}_net_{network}.pth"
        self.lock: RunLock | None = None
        self.monitor: Monitor | None = None
        self.start = distributed.gather(self._claim() if self.writes else "nothing")[0]
        if self.start == "weights" and self.epoch.isdecimal() and "epoch_count" not in opt.given:
            opt.epoch_count = int(self.epoch) + 1

    def _claim(self) -> str:
        """Lock the folder; return the `start`."""
        continues = self.opt.continue_train
        start = self._starting_point() if continues else "nothing"  # makes no folder for a mistyped name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = RunLock(self.folder)
        remove_leftovers(self.folder)
        if not continues and holds_run(self.folder) and not self.opt.overwrite:
            differing = changed_options(self.folder, self.opt, self.parser.options, ("run", "fixed", "watch"))
            differ = f"options that differ: {'; '.join(differing) or 'none'}"
            found = f"there is a run in {self.folder} already ({differ})"
            ways = "--continue_train to continue it, another --name to keep both, or --overwrite to rename it"
            raise UserError(f"{found}: give {ways}")
        return start

    def _starting_point(self) -> str:
        if self.epoch == "latest" and (self.folder / STATE_FILE).is_file():
            return "state"
        if self.weights.is_file():
            return "weights"
        if self.epoch == "latest" and (self.folder / FILE).is_file():
            return "nothing"  # begun, and ended before its first save
        raise UserError(f"{str(self.folder)!r} has no {self.weights.name} to continue from")

    def begin(
        self, model, files: object, compare_files: Callable, epoch_steps: int, global_batch: int
    ) -> Progress:
        """Load what training starts from, and return where it stands; `compare_files`: saved, present."""
        opt, self.model, self.files = self.opt, model, files
        self.progress = Progress(epoch=opt.epoch_count)
        if self.writes:
            self.monitor = create_monitor(opt, self.folder, epoch_steps)
        if self.start == "nothing":
            if opt.pretrained_name:
                found = model.load_networks(Path(opt.checkpoints_dir, opt.pretrained_name), opt.epoch)
                say(f"Starting from the weights of {opt.pretrained_name}: {', '.join(found)}.")
            elif opt.continue_train:
                say(f"Nothing was saved in {self.folder} yet: starting at the beginning.")
            if self.writes:  # only now: nothing that could fail before the first step has
                self._begin_folder()
        if self.start == "state":
            saved_files = self._resume(global_batch)
            if saved_files and (differences := compare_files(saved_files, files)):
                say(f"note: the images are not those of the run so far: {'; '.join(differences)}")
        elif self.start == "weights":
            found = ", ".join(model.load_networks(self.folder, self.epoch))
            say(f"Continuing from the weights alone ({found}) in epoch {self.progress.epoch}.")
        if self.start != "nothing":
            if changed := changed_options(self.folder, opt, self.parser.options, ("run",)):
                say(f"note: options are not those of the run so far: {'; '.join(changed)}")
        model.schedule.begin(self.progress.epoch, self.progress.steps)
        self.first_step = self.progress.steps + 1
        self.recent: deque[tuple[int, str, list[str]]] = deque(maxlen=REMEMBERED)  # step, place, images
        return self.progress

    def _begin_folder(self) -> None:
        """Rename a run that has this name, and save the options of the new one."""
        folder = self.folder
        if holds_run(folder):
            self.lock.release()  # Windows renames no folder with an open file
            names = (folder.with_name(f"{folder.name}.replaced-{number}") for number in itertools.count(1))
            aside = next(name for name in names if not name.exists())
            folder.rename(aside)
            say(f"The run before is kept in {aside}.")
            folder.mkdir()
            self.lock = RunLock(folder)
        for log in (TEXT, JSON_LINES):  # of a start that saved nothing
            (folder / log).unlink(missing_ok=True)
        write_options(self.folder, self.opt, self.parser.defaults)

    def _resume(self, global_batch: int) -> object:
        """Put model, random generators and logs back to where the state was saved; return its `files`."""
        path = self.folder / STATE_FILE
        try:
            state = load_state(self.folder)
            self.progress = progress = Progress(**state["progress"])
            self.model.load_training_state(state["model"])
            set_random_state(state["random"])
            if self.monitor and "logs" in state:
                self.monitor.load_state_dict(state["logs"])
        except UserError as error:  # which network differs, and by which option
            problem = "was saved with other networks than these options build"
            raise UserError(f"{path} {problem}: {error}") from None
        except Exception as error:  # torch raises exceptions of many types for damaged files
            if lacks_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            advice = "to go on from weights alone, remove the file and use --continue_train --epoch latest"
            raise UserError(f"{path} is damaged ({reason}); {advice}") from None
        if "epoch_count" in self.opt.given and self.opt.epoch_count != progress.epoch:
            progress.begin_epoch(self.opt.epoch_count)
        if progress.position % global_batch:
            found = f"the run stopped after {progress.position} images of its epoch"
            found += f", no multiple of the global batch, {global_batch}"
            ways = f"resume with the global batch it was trained with, or --epoch_count {progress.epoch + 1}"
            raise UserError(f"{found}: {ways}")
        say(f"Continuing in epoch {progress.epoch} after {progress.images} images.")
        if self.writes:  # a killed run may not have come to saving these
            self.model.save_networks(self.folder, "latest")
        return state.get("data")

    def check(self, wait: bool = False) -> None:
        """UserError where the folder is not the run's, or a step was not finite; `wait` for the device."""
        if self.writes and not self.lock.is_in_place():  # another run may have taken its place
            raise UserError(f"training stopped: {self.folder} is no longer the folder of this run")
        if not wait:
            place = f"image {self.progress.images}, epoch {self.progress.epoch}"
            self.recent.append((self.progress.steps, place, self.model.image_paths))
        if failure := self.model.guard.failure(wait):
            step = self.first_step + failure.step
            place, paths = next((entry[1:] for entry in self.recent if entry[0] == step), ("long ago", []))
            found = f"{', '.join(failure.names)} not finite in step {step} ({place})"
            images = ", ".join(map(repr, paths)) or "images no longer known"
            advice = (
                "No weight was updated with it. Look at the images or lower --lr, and give --continue_train"
            )
            raise UserError(f"training stopped: {found} on {images}. {advice}")

    def save(self, *names: str) -> None:
        """Save the state, and the weights under each of `names` ("latest", "5", "iter_5000")."""
        self.check(wait=True)  # a resume would otherwise start after the failure
        model_state = self.model.training_state()
        if not self.writes:
            return
        try:
            for name in names:  # numbered ones first: a resume from the state would not write them
                if name != "latest":
                    self.model.save_networks(self.folder, name)
            state = {
                "progress": asdict(self.progress),
                "model": model_state,
                "options": option_values(self.opt),
            }
            save_state(self.folder, {**state, "data": self.files, "logs": self.monitor.state_dict()})
            if "latest" in names:  # last, since without a state they look like a run that never had one
                self.model.save_networks(self.folder, "latest")
            write_options(self.folder, self.opt, self.parser.defaults)
        except OSError as error:
            found = f"the checkpoint could not be saved in {self.folder}: {error}"
            advice = "The last good one stays; make room, then give --continue_train"
            raise UserError(f"{found}. {advice}") from None

    def close(self) -> None:
        """Finish the page and let others train in the folder."""
        if self.monitor:
            self.monitor.close()
        if self.lock:
            self.lock.release()
