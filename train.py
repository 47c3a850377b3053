"""Train a translation: python train.py --dataroot ./datasets/horse2zebra --name NAME --QS_mode global

An epoch is max(|A|, |B|) images. `python train.py --help` lists all options; README.md has examples.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from data import create_loader
from data.folders import changes, fingerprint
from data.loader import Loader
from data.preflight import quick_check
from models import MODELS, create_model
from models.base_model import BaseModel
from models.samples import Samples
from models.weights import weights_file
from options.describe import banner, closing, describe
from options.saved import changed_options, holds_run, refuse_another_run, run_folder, write_options
from options.train_options import OF_THE_CALL, WATCHING, TrainOptions
from util import distributed
from util.arguments import ArgumentParser
from util.console import lasting_output, say, show_warnings_as_lines
from util.device import get_device
from util.errors import UserError, entry_point
from util.run.checkpoint import STATE_FILE, WITHOUT_STATE, Checkpoints, Progress, seed_everything
from util.run.claim import claim_folder
from util.run.clock import Clock
from util.run.failures import FailureReport
from util.run.length import Length
from util.run.lock import RunLock
from util.run.replaced import clear_logs, drop_replaced, has_replaced, put_back, set_aside
from util.run.stop_signal import StopSignal
from util.watch.monitor import Monitor, create_monitor
from util.watch.report import Report


@lasting_output()
@entry_point
def main(argv: list[str] | None = None) -> int:
    """Train as a command line says; return the exit status."""
    options = TrainOptions()
    opt = options.parse(argv)
    device = get_device(opt.gpu_ids)
    show_warnings_as_lines()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (obstacle := MODELS[opt.model].process_obstacle(opt)):
        raise UserError(f"{obstacle}, or a single process")  # before the processes connect: each refuses
    try:
        with distributed.session(device), StopSignal() as stop:
            return train(opt, options.parser, device, stop)
    except distributed.ProcessLostError as error:
        print(
            f"error: another process of this training was lost ({str(error).splitlines()[0][:200]}). Start "
            "the training again with --continue_train, unless torchrun does (--max-restarts)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # a normal exit would wait for work on the GPU that needs the lost process


def train(opt: Namespace, parser: ArgumentParser, device: torch.device, stop: StopSignal) -> int:
    """Train to the last epoch, or until `stop`; return the exit status."""
    # the run's folder; the data is checked first, so that a start without data makes no folder
    if distributed.rank() == 0:
        for problem in quick_check(opt):
            say(f"note: {problem}", file=sys.stderr)
    run = Run(opt, parser, run_folder(vars(opt)))

    # data and model
    seed_everything(opt.seed)
    if opt.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    loader = create_loader(opt, device, rank=distributed.rank(), world_size=distributed.world_size())
    model = create_model(opt)
    model.expect_images(loader.dataset.files)
    if opt.dry_run:
        print(describe(opt, model, loader))
        return 0

    try:
        # where to begin, and what to show
        global_batch = opt.batch_size * distributed.world_size()
        epoch_images = len(loader) * global_batch  # an incomplete last batch is left out
        progress = run.begin(model, loader, global_batch)
        monitor = run.monitor
        length = Length.of(opt)
        samples = Samples(opt, model) if monitor and monitor.watchers else None
        report = Report(monitor, model, progress, opt, epoch_images, global_batch, samples)
        failures = FailureReport(model, progress)
        if length.reached(progress):
            say(f"The run is complete: {length}. Raise {length.options} to continue.")
        else:
            say(banner(opt, model, loader, run.folder, progress.epoch))

        while not length.reached(progress):
            epoch, clock = progress.epoch, Clock()
            report.begin_epoch(clock)
            for batch in loader.epoch(epoch, progress.position):
                clock.data_ready()
                model.set_input(batch)
                model.optimize_parameters()
                clock.step_done(global_batch)
                progress.advance(global_batch)
                failures.check()
                report.step()

                stopping, complete = distributed.largest(stop.received), length.reached(progress)
                if stopping or complete or progress.crossed(opt.save_latest_freq, global_batch):
                    failures.check(wait=True)  # a resume would otherwise start after the failure
                    report.save_mean()
                    names = [f"iter_{progress.images}"] if opt.save_by_iter else []
                    if stopping or complete or not names:
                        names.append("latest")
                    run.save(*names)
                if stopping:
                    stop.received = stopping
                    report.end_epoch()
                    say(f"Stopped in epoch {epoch} after {progress.images} images, saved.")
                    say(closing(opt, run.folder, complete=False))
                    return stop.exit_status
                if complete:  # by iterations: within the epoch, where a longer training would continue
                    report.end_epoch()
                    say(f"End of training in epoch {epoch}, after {length}.")
                    say(closing(opt, run.folder, complete=True))
                    return 0

            failures.check(wait=True)
            model.update_learning_rate(report.mean_headline())
            progress.next_epoch()
            report.end_epoch()
            if epoch % opt.save_epoch_freq == 0:
                run.save("latest", str(epoch))
            elif length.reached(progress):
                run.save("latest")
            say(
                f"End of epoch {epoch} / {report.last_epoch} \t Time Taken: {clock.total:.0f} sec, "
                f"learning rate now {model.learning_rate:.7f}, {report.time_left} left"
            )
        say(closing(opt, run.folder, complete=True))
        return 0
    finally:
        loader.close()
        run.close()


class Run:
    """The run's folder: claimed, continued or begun, and saved to. Only the first process writes."""

    def __init__(self, opt: Namespace, parser: ArgumentParser, folder: Path):
        self.opt, self.parser, self.folder = opt, parser, folder
        self.writes = distributed.rank() == 0 and not opt.dry_run
        self.lock: RunLock | None = None
        self.monitor: Monitor | None = None
        self.replacing = False  # another run is set aside until this one has saved
        # --epoch counts only where it was given; otherwise it may be what an earlier call has saved
        self.epoch = opt.epoch if "epoch" in opt.given else "latest"
        self.start = "nothing" if opt.dry_run else distributed.from_first(self._claim)
        if self.start == "weights" and self.epoch.isdecimal() and "epoch_count" not in opt.given:
            opt.epoch_count = int(self.epoch) + 1

    def _claim(self) -> str:
        network = MODELS[self.opt.model].translating(self.opt)[0]
        self.lock, start = claim_folder(
            self.folder,
            weights_file(self.folder, self.epoch, network),
            continues=self.opt.continue_train,
            default_start=self.epoch == "latest",
            refuse=lambda: refuse_another_run(self.opt, self.folder, self.parser, OF_THE_CALL),
        )
        return start

    def begin(self, model: BaseModel, loader: Loader, global_batch: int) -> Progress:
        """Where training begins: the exact place where the run stopped, given weights, or a fresh start."""
        opt, progress = self.opt, Progress(epoch=self.opt.epoch_count)
        if self.start == "nothing" and opt.pretrained_name:
            found = model.load_networks(Path(opt.checkpoints_dir) / opt.pretrained_name, opt.epoch)
            say(f"Starting from the weights of {opt.pretrained_name}, epoch {opt.epoch}: {', '.join(found)}.")
        elif self.start == "nothing" and opt.continue_train:
            say(f"Nothing was saved in {self.folder} yet: starting at the beginning.")
        if self.start == "nothing" and self.writes:
            self._clear()  # only now: nothing that could fail before the first step has
        logs = {}
        if self.writes:
            self.monitor = create_monitor(opt, self.folder, len(loader))
            logs["logs"] = (self.monitor.state_dict, self.monitor.load_state_dict)
        files = fingerprint(loader.dataset.files, opt.dataroot)
        differences: list[str] = []
        data = {"data": (lambda: files, lambda before: differences.extend(changes(before, files)))}
        self.checkpoints = Checkpoints(self.folder, model, {**logs, **data}, self.writes)
        if self.start == "state":
            progress = self.checkpoints.resume()
            self._check_place(progress, len(loader) * global_batch, global_batch, bool(differences))
            say(f"Continuing in epoch {progress.epoch} after {progress.images} images.")
            # a killed run may not have come to saving these
            self._write(lambda: model.save_networks(self.folder, "latest"))
        elif self.start == "weights":
            found = model.load_networks(self.folder, self.epoch)
            say(
                f"{self.folder} has no exact state of this epoch: continuing from the weights alone "
                f"({', '.join(found)}) in epoch {progress.epoch}, with fresh optimisers."
            )
        model.schedule.begin(progress.epoch, progress.steps)
        if self.start != "nothing":
            self._note_changes(differences)
        if self.writes:
            write_options(self.folder, opt, self.parser.defaults)
        self.progress = progress
        return progress

    def _clear(self) -> None:
        """Make room for a fresh start: set another run aside, or delete logs of one that saved nothing."""
        try:
            if holds_run(self.folder) or has_replaced(self.folder):
                set_aside(self.folder)
                self.replacing = True
            else:
                clear_logs(self.folder)
        except OSError as error:
            raise UserError(
                f"the run in {self.folder} cannot be set aside: {error}; choose another --name"
            ) from None

    def _check_place(
        self, progress: Progress, epoch_images: int, global_batch: int, other_data: bool
    ) -> None:
        """UserError where a training cannot continue from where the state was saved."""
        if progress.position > epoch_images and not other_data:
            raise UserError(
                f"{self.folder / STATE_FILE} is damaged (it stands at image {progress.position} of an epoch "
                f"of {epoch_images}); {WITHOUT_STATE}"
            )
        if progress.position % global_batch:
            raise UserError(
                f"the run stopped after {progress.position} images of its epoch, which is no multiple of the "
                f"global batch, {global_batch} (batch size x processes): resume with the global batch it was "
                "trained with"
            )

    def _note_changes(self, data: list[str]) -> None:
        """Say which images and options are no longer those that the run was saved with, and what follows."""
        if data:
            say(
                f"note: the images are not those of the run so far: {'; '.join(data)}. The rest of this "
                "epoch and later ones use the images there are now, in another order than without the "
                "change."
            )
        if changed := changed_options(self.opt, self.folder, self.parser, (*OF_THE_CALL, *WATCHING)):
            say(
                f"note: options are not those of the run so far: {'; '.join(changed)}. Training continues "
                "with the new values, which are saved with the run; losses before and after may not "
                "compare."
            )

    def save(self, *names: str) -> None:
        """Save the run under `names`. All processes call it together."""
        self._write(lambda: self._save(*names))

    def _save(self, *names: str) -> None:
        self.checkpoints.save(self.progress, *names)
        if self.replacing:
            drop_replaced(self.folder)
            self.replacing = False

    def _write(self, save: Callable[[], None]) -> None:
        """Call `save`; UserError where that fails."""
        try:
            if self.writes and not self.lock.path.exists():  # the logs may have made the folder again
                say(f"warning: {self.folder} has vanished, with all that was in it; making it anew.")
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock.release()
                self.lock = RunLock(self.folder)
                write_options(self.folder, self.opt, self.parser.defaults)
            save()
        except OSError as error:
            raise UserError(
                f"the checkpoint could not be saved in {self.folder}: {error}. The last good one stays; make "
                "room or repair the folder, then continue with --continue_train"
            ) from None

    def close(self) -> None:
        """Finish the page and let others train in the folder. Put a run back that nothing has replaced."""
        if self.monitor:
            self.monitor.close()
        if self.replacing:
            try:
                put_back(self.folder)
                say(f"Nothing was saved: the earlier run is back in {self.folder}.")
            except OSError as error:
                say(
                    f"warning: the earlier run in {self.folder} could not be put back yet ({error}); the "
                    "next training of this name will do it."
                )
        if self.lock:
            self.lock.release()


if __name__ == "__main__":
    sys.exit(main())
