"""Train a translation: python train.py --dataroot ./datasets/horse2zebra --name NAME --QS_mode global

Every epoch goes through max(|A|, |B|) images; see options/train_options.py for all there is to choose, and README.md.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from argparse import Namespace
from collections import deque
from pathlib import Path

import torch
from tqdm import tqdm

from data import create_loader
from data.preflight import quick_check
from models import create_model
from models.cut_model import CUTModel
from models.finite_guard import Failure
from options.base_options import option_values, read_saved_options, run_folder, write_options
from options.train_options import OF_THE_CALL, TrainOptions
from util import distributed
from util.checkpoint import STATE_FILE, Checkpoints, Progress, remove_state, seed_everything
from util.describe import describe
from util.device import get_device
from util.errors import UserError, entry_point
from util.files import remove_leftovers
from util.images import to_uint8
from util.loss_log import loss_line
from util.monitor import Monitor
from util.run_lock import RunLock
from util.stop_signal import StopSignal
from util.visdom_client import VisdomClient


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Train as the words of a command line say; return the exit status."""
    options = TrainOptions()
    opt = options.parse(argv)
    device = get_device(opt.gpu_ids)
    warnings.showwarning = show_warning
    try:
        with distributed.session(device), StopSignal() as stop:
            return Training(opt, options.parser.defaults, device).run(stop)
    except distributed.ProcessLostError as error:
        print(f"error: another process of this training was lost ({str(error)[:200]}); stopping", file=sys.stderr)
        return 1


class Training:
    """One call of train.py: what it needs, then the loop."""

    def __init__(self, opt: Namespace, defaults: dict[str, object], device: torch.device):
        self.opt = opt
        self.device = device
        self.folder = run_folder({**vars(opt), "suffix": ""})
        self.writes = distributed.rank() == 0 and not opt.dry_run
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # by torchrun, after a process died
        self.continues = opt.continue_train or (restarted and (self.folder / STATE_FILE).is_file())

        if self.writes:
            make_folder(self.folder)
            self.lock = RunLock(self.folder)
            remove_leftovers(self.folder)
            if not self.continues:
                refuse_another_run(opt, self.folder, defaults)
        if self.continues and self._from_weights and opt.epoch.isdecimal() and "epoch_count" not in opt.given:
            opt.epoch_count = int(opt.epoch) + 1
        if opt.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False

        # data, networks
        if distributed.rank() == 0:
            for problem in quick_check(opt):
                print(f"note: {problem}", file=sys.stderr)
        seed_everything(opt.seed)
        self.loader = create_loader(opt, device, rank=distributed.rank(), world_size=distributed.world_size())
        self.global_batch = opt.batch_size * distributed.world_size()
        self.model: CUTModel = create_model(opt)

        # watching, and where to begin
        self.monitor = self._make_monitor() if self.writes else None
        logs = {"logs": (self.monitor.state_dict, self.monitor.load_state_dict)} if self.monitor else {}
        self.checkpoints = Checkpoints(self.folder, self.model, logs)
        self.progress = Progress() if opt.dry_run else self._begin()
        if self.writes:
            write_options(self.folder, opt, defaults)
        self.recent: deque[tuple[int, int, list[str]]] = deque(maxlen=1000)  # steps, images and paths, for a failure's report

    def run(self, stop: StopSignal) -> int:
        """Train to the last epoch, or until `stop`; return the exit status."""
        if self.opt.dry_run:
            print(describe(self.opt, self.model, self.loader))
            return 0
        progress, last_epoch = self.progress, self.opt.n_epochs + self.opt.n_epochs_decay
        if progress.epoch > last_epoch:
            self._say(f"The run is complete: {last_epoch} epochs. More of --n_epochs or --n_epochs_decay would go on.")
        try:
            while progress.epoch <= last_epoch:
                if not self._run_epoch(stop):
                    return stop.exit_status
            return 0
        finally:
            self.loader.close()
            if self.monitor:
                self.monitor.close()

    def _run_epoch(self, stop: StopSignal) -> bool:
        """Train to the end of the epoch; False where `stop` ended it early, with everything saved."""
        opt, progress, model = self.opt, self.progress, self.model
        epoch, bar = progress.epoch, self._progress_bar()
        loss_G_sum = torch.tensor(progress.loss_G_sum, device=self.device)
        self.clock = Clock()
        for batch in self.loader.epoch(epoch, progress.position):
            self.clock.data_ready()
            model.set_input(batch)
            model.optimize_parameters()
            progress.advance(self.global_batch)
            self.clock.step_done(self.global_batch)
            bar.update(self.global_batch)
            loss_G_sum += model.losses["G"].detach()
            self.recent.append((progress.steps, progress.images, model.image_paths))
            if failure := model.guard.failure():
                raise UserError(self._describe_failure(failure))
            self._show(bar)
            stopping = distributed.largest(stop.received)
            if stopping or progress.crossed(opt.save_latest_freq, self.global_batch):
                progress.loss_G_sum = float(loss_G_sum)
                self._save(f"iter_{progress.images}" if opt.save_by_iter else "latest")
            if stopping:
                stop.received = stopping
                bar.close()
                self._say(f"Stopped in epoch {epoch} after {progress.images} images, saved. Go on with --continue_train.")
                return False
        bar.close()
        if failure := model.guard.failure(wait=True):
            raise UserError(self._describe_failure(failure))
        (mean_G,) = distributed.mean([float(loss_G_sum) / max(progress.epoch_steps, 1)])
        model.update_learning_rate(mean_G)
        progress.next_epoch()
        last_epoch = opt.n_epochs + opt.n_epochs_decay
        if self.monitor:
            self.monitor.epoch_end(epoch)
        if epoch % opt.save_epoch_freq == 0:
            self._save("latest", str(epoch))
        elif epoch == last_epoch:
            self._save("latest")
        self._say(
            f"End of epoch {epoch} / {last_epoch} \t Time Taken: {self.clock.total:.0f} sec, "
            f"learning rate now {model.learning_rate:.7f}"
        )
        return True

    def _show(self, bar: tqdm) -> None:
        """Losses and images of the last step, where it is their turn."""
        opt, progress = self.opt, self.progress
        if progress.crossed(opt.print_freq, self.global_batch):
            losses = self.model.get_current_losses()
            losses = dict(zip(losses, distributed.mean(list(losses.values())), strict=True))
            seconds, data_seconds = self.clock.per_image()
            self._say(loss_line(progress.epoch, progress.position, seconds, data_seconds, losses))
            if self.monitor:
                self.monitor.losses(
                    epoch=progress.epoch,
                    iters=progress.position,
                    images=progress.images,
                    losses=losses,
                    seconds_per_image=seconds,
                    data_seconds=data_seconds,
                    lr=self.model.learning_rate,
                    epoch_progress=progress.position / self._epoch_images,
                )
            left = (self.opt.n_epochs + self.opt.n_epochs_decay - progress.epoch + 1) * self._epoch_images - progress.position
            bar.set_postfix_str(
                f"G {losses['G']:.3f}, NCE {losses['NCE']:.3f}, {tqdm.format_interval(left * seconds)} left in all", refresh=False
            )
        shown = progress.crossed(opt.display_freq, self.global_batch)
        saved = progress.crossed(opt.update_html_freq, self.global_batch) or self._is_last_step
        if self.monitor and (shown or saved):
            visuals = {label: to_uint8(images) for label, images in self.model.get_current_visuals().items()}
            self.monitor.images(progress.epoch, visuals, save=saved)

    @property
    def _epoch_images(self) -> int:
        """Images of an epoch, those of a last incomplete batch left out."""
        return len(self.loader) * self.global_batch

    @property
    def _is_last_step(self) -> bool:
        return self.progress.position >= self._epoch_images

    @property
    def _from_weights(self) -> bool:
        """Whether there is no exact state for the checkpoint asked for, only weights."""
        return self.opt.epoch != "latest" or not (self.folder / STATE_FILE).is_file()

    def _begin(self) -> Progress:
        """A fresh start, the exact place where the run stopped, or given weights."""
        opt = self.opt
        fresh = Progress(epoch=opt.epoch_count)
        if opt.pretrained_name:
            found = self.checkpoints.load_weights(Path(opt.checkpoints_dir) / opt.pretrained_name, opt.epoch)
            self._say(f"Starting from the weights of {opt.pretrained_name}, epoch {opt.epoch}: {', '.join(found)}.")
            return fresh
        if not self.continues:
            return fresh
        if not self._from_weights:
            progress = self.checkpoints.resume()
            if progress.position % self.global_batch:
                raise UserError(
                    f"the run stopped after {progress.position} images of its epoch, which is no multiple of the global batch, "
                    f"{self.global_batch} (batch size x processes): resume with the global batch it was trained with"
                )
            self._say(f"Continuing in epoch {progress.epoch} after {progress.images} images.")
            return progress
        found = self.checkpoints.load_weights(self.folder, opt.epoch)
        self._say(
            f"{self.folder} has no {STATE_FILE} of this epoch: going on from the weights alone ({', '.join(found)}) in epoch "
            f"{fresh.epoch}, with fresh optimisers."
        )
        return fresh

    def _save(self, *names: str) -> None:
        """Save, or say why that failed and do what --on_save_error says."""
        if not self.writes:
            return
        try:
            make_folder(self.folder)
            self.checkpoints.save(self.progress, *names)
        except OSError as error:
            told = f"the checkpoint could not be saved in {self.folder}: {error}. The last good one stays"
            if self.opt.on_save_error == "stop":
                raise UserError(f"{told}; make room or mend the folder, then go on with --continue_train") from None
            self._say(f"warning: {told}, and training goes on.")

    def _describe_failure(self, failure: Failure) -> str:
        first = self.progress.steps - self.model.guard.steps
        steps, images, paths = next(
            (entry for entry in self.recent if entry[0] == first + failure.step + 1), (first + failure.step + 1, 0, [])
        )
        return (
            f"training stopped: {', '.join(failure.names)} not finite in step {steps} (image {images}, epoch "
            f"{self.progress.epoch}) on {', '.join(paths) or 'images no longer known'}. No weight was updated with it. Look at "
            "those images, lower --lr, or use --precision fp32; --continue_train goes on from the last good checkpoint"
        )

    def _make_monitor(self) -> Monitor:
        opt, visdom = self.opt, None
        if opt.display_id is None or opt.display_id > 0:
            visdom = VisdomClient(
                opt.display_server, opt.display_port, opt.display_env, opt.display_id or 1, opt.display_ncols, opt.display_winsize
            )
        return Monitor(self.folder, opt.name, html=not opt.no_html, visdom=visdom, display_winsize=opt.display_winsize)

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self._epoch_images,
            initial=self.progress.position,
            desc=f"epoch {self.progress.epoch}/{self.opt.n_epochs + self.opt.n_epochs_decay}",
            unit=" images",
            disable=True if distributed.rank() else None,  # None: only on a terminal
            dynamic_ncols=True,
        )

    def _say(self, text: str) -> None:
        if distributed.rank() == 0:
            tqdm.write(text)


class Clock:
    """Seconds an image, waiting for data and in all, since they were last asked for."""

    def __init__(self):
        self.begun = time.perf_counter()
        self._restart(self.begun)

    def _restart(self, now: float) -> None:
        self._since = self._step_began = now
        self._waited = 0.0
        self._images = 0

    def data_ready(self) -> None:
        self._waited += time.perf_counter() - self._step_began

    def step_done(self, images: int) -> None:
        self._images += images
        self._step_began = time.perf_counter()

    def per_image(self) -> tuple[float, float]:
        """(all, waiting for data), in seconds an image."""
        now, images = time.perf_counter(), max(self._images, 1)
        seconds, waited = (now - self._since) / images, self._waited / images
        self._restart(now)
        return seconds, waited

    @property
    def total(self) -> float:
        return time.perf_counter() - self.begun


def show_warning(message: Warning | str, category: type[Warning], *where) -> None:
    """Warnings as one line above the progress bar, without the line of code they came from."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def make_folder(folder: Path) -> None:
    """Make the run's folder, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run's folder {folder} cannot be made: {error}; choose another --checkpoints_dir") from None


def refuse_another_run(opt: Namespace, folder: Path, defaults: dict[str, object]) -> None:
    """UserError where a fresh start would write over an earlier run, unless --overwrite says so."""
    if not (folder / STATE_FILE).exists() and not list(folder.glob("*_net_G.pth")):
        return
    if opt.overwrite:
        remove_state(folder)
        for log in ("loss_log.txt", "log.jsonl"):
            (folder / log).unlink(missing_ok=True)
        return
    saved = read_saved_options(folder, TrainOptions().parser) or {}
    now = option_values(opt)
    differing = [
        f"{name}: {saved[name]} there, {now[name]} now"
        for name in sorted(defaults)
        if name in saved and name not in OF_THE_CALL and saved[name] != now[name] and str(saved[name]) != str(now[name])
    ]
    difference = f" Its options differ: {'; '.join(differing)}." if differing else ""
    raise UserError(
        f"there is a run in {folder} already.{difference} Give --continue_train to go on with it, another --name to keep both, "
        "or --overwrite to start afresh in its place"
    )


if __name__ == "__main__":
    sys.exit(main())
