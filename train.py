"""Train a translation: python train.py --dataroot ./datasets/horse2zebra --name NAME --QS_mode global

Every epoch goes through max(|A|, |B|) images; see options/train_options.py for all there is to choose, and README.md.
"""

from __future__ import annotations

import os
import sys
import warnings
from argparse import Namespace
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import create_loader
from data.preflight import quick_check
from models import create_model
from models.cut_model import CUTModel
from models.query_pictures.overview import query_overview
from models.training.finite_guard import Failure
from options.base_options import run_folder, write_options
from options.describe import describe
from options.train_options import TrainOptions
from util import distributed
from util.device import get_device
from util.errors import UserError, entry_point
from util.images import to_uint8
from util.run.checkpoint import Checkpoints, Progress, seed_everything
from util.run.clock import Clock
from util.run.run_folder import claim_folder
from util.run.run_lock import RunLock
from util.run.stop_signal import StopSignal
from util.watch.loss_log import loss_line
from util.watch.monitor import Monitor
from util.watch.visdom_client import VisdomClient


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Train as the words of a command line say; return the exit status."""
    options = TrainOptions()
    opt = options.parse(argv)
    device = get_device(opt.gpu_ids)
    warnings.showwarning = show_warning
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        refuse_what_processes_cannot_share(opt)  # before they meet, so that each one says the same
    try:
        with distributed.session(device), StopSignal() as stop:
            return Training(opt, options.parser.defaults, device).run(stop)
    except distributed.ProcessLostError as error:
        told = f"error: another process of this training was lost ({str(error).splitlines()[0][:200]}); stopping. "
        print(
            told + "Start it again with --continue_train, unless torchrun does (--max-restarts)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an orderly end would wait for work on the GPU that needs the lost process


class Training:
    """One call of train.py: what it needs, then the loop."""

    def __init__(self, opt: Namespace, defaults: dict[str, object], device: torch.device):
        self.opt = opt
        self.device = device
        self.folder = run_folder(vars(opt))
        self.writes = distributed.rank() == 0 and not opt.dry_run
        self.lock: RunLock | None = None
        self.defaults = defaults
        if distributed.rank() == 0:  # first, so that a start without data leaves no folder of a run
            for problem in quick_check(opt):
                print(f"note: {problem}", file=sys.stderr)
        start = distributed.from_first(self._claim)
        if start == "weights" and opt.epoch.isdecimal() and "epoch_count" not in opt.given:
            opt.epoch_count = int(opt.epoch) + 1
        if opt.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False

        # data, networks
        seed_everything(opt.seed)
        self.loader = create_loader(opt, device, rank=distributed.rank(), world_size=distributed.world_size())
        self.global_batch = opt.batch_size * distributed.world_size()
        self.model: CUTModel = create_model(opt)

        # watching, and where to begin
        self.monitor = self._make_monitor() if self.writes else None
        logs = {"logs": (self.monitor.state_dict, self.monitor.load_state_dict)} if self.monitor else {}
        self.checkpoints = Checkpoints(self.folder, self.model, logs)
        self.progress = self._begin(start)
        self.first_step = self.progress.steps + 1
        if self.writes:
            write_options(self.folder, opt, defaults)
        self.recent: deque[tuple[int, int, list[str]]] = deque(
            maxlen=1000
        )  # steps, images and paths, for a failure's report

    def run(self, stop: StopSignal) -> int:
        """Train to the last epoch, or until `stop`; return the exit status."""
        if self.opt.dry_run:
            print(describe(self.opt, self.model, self.loader))
            return 0
        progress, last_epoch = self.progress, self.opt.n_epochs + self.opt.n_epochs_decay
        if progress.epoch > last_epoch:
            self._say(
                f"The run is complete: {last_epoch} epochs. More of --n_epochs or --n_epochs_decay would go on."
            )
        try:
            while progress.epoch <= last_epoch:
                if not self._run_epoch(stop):
                    return stop.exit_status
            return 0
        finally:
            self.loader.close()
            if self.monitor:
                self.monitor.close()
            if self.lock:
                self.lock.release()

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
            self._stop_at_failure()
            self._show(bar)
            stopping = distributed.largest(stop.received)
            if stopping or progress.crossed(opt.save_latest_freq, self.global_batch):
                self._stop_at_failure(wait=True)  # else a resume would go on behind it
                progress.loss_G_sum = float(loss_G_sum)
                self._save(f"iter_{progress.images}" if opt.save_by_iter else "latest")
            if stopping:
                stop.received = stopping
                bar.close()
                self._say(
                    f"Stopped in epoch {epoch} after {progress.images} images, saved. Go on with --continue_train."
                )
                return False
        bar.close()
        self._stop_at_failure(wait=True)
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
            left = (
                self.opt.n_epochs + self.opt.n_epochs_decay - progress.epoch + 1
            ) * self._epoch_images - progress.position
            bar.set_postfix_str(
                f"G {losses['G']:.3f}, NCE {losses['NCE']:.3f}, {tqdm.format_interval(left * seconds)} left in all",
                refresh=False,
            )
        shown = progress.crossed(opt.display_freq, self.global_batch)
        saved = progress.crossed(opt.update_html_freq, self.global_batch) or self._is_last_step
        if self.monitor and (shown or saved):
            self.monitor.images(progress.epoch, self._visuals(), save=saved)

    def _visuals(self) -> dict[str, np.ndarray]:
        """The first images of the last step by label, (H, W, 3) uint8."""
        opt, model = self.opt, self.model
        visuals = {label: to_uint8(images) for label, images in model.get_current_visuals().items()}
        if opt.display_queries:
            choice = (opt.qs_layers, opt.QS_mode, opt.num_patches, opt.qs_window)
            visuals["queries"] = query_overview(model.netG, model.real_A[:1], *choice)
        return visuals

    @property
    def _epoch_images(self) -> int:
        """Images of an epoch, those of a last incomplete batch left out."""
        return len(self.loader) * self.global_batch

    @property
    def _is_last_step(self) -> bool:
        return self.progress.position >= self._epoch_images

    def _claim(self) -> str:
        """Lock the run's folder, and say what to begin with: "nothing", "weights" or "state"."""
        if self.opt.dry_run:
            return "nothing"
        self.lock, start = claim_folder(self.opt, self.folder, self._epoch_to_continue, self.defaults)
        return start

    @property
    def _epoch_to_continue(self) -> str:
        """`--epoch`, unless it only is what an earlier call has saved."""
        return self.opt.epoch if "epoch" in self.opt.given else "latest"

    def _begin(self, start: str) -> Progress:
        """A fresh start, given weights, or the exact place where the run stopped."""
        opt = self.opt
        if start == "state":
            progress = self.checkpoints.resume()
            if progress.position % self.global_batch:
                raise UserError(
                    f"the run stopped after {progress.position} images of its epoch, which is no multiple of the global batch, "
                    f"{self.global_batch} (batch size x processes): resume with the global batch it was trained with"
                )
            self._say(f"Continuing in epoch {progress.epoch} after {progress.images} images.")
            self._guard_save(
                lambda: self.checkpoints.save_weights("latest")
            )  # a killed run may not have come to them
            return progress
        fresh = Progress(epoch=opt.epoch_count)
        if start == "weights":
            found = self.checkpoints.load_weights(self.folder, self._epoch_to_continue)
            self._say(
                f"{self.folder} has no exact state of this epoch: going on from the weights alone ({', '.join(found)}) in epoch "
                f"{fresh.epoch}, with fresh optimisers."
            )
        elif opt.pretrained_name:
            found = self.checkpoints.load_weights(Path(opt.checkpoints_dir) / opt.pretrained_name, opt.epoch)
            self._say(
                f"Starting from the weights of {opt.pretrained_name}, epoch {opt.epoch}: {', '.join(found)}."
            )
        elif opt.continue_train:
            self._say(f"Nothing was saved in {self.folder} yet: starting at the beginning.")
        return fresh

    def _save(self, *names: str) -> None:
        """Save the run under `names`."""
        self._guard_save(lambda: self.checkpoints.save(self.progress, *names))

    def _guard_save(self, save: Callable[[], None]) -> None:
        """Call `save`, or say why that failed and do what --on_save_error says. Process 0 alone."""
        if not self.writes:
            return
        try:
            if not self.lock.path.exists():  # the logs may have made the folder itself again
                self._say(f"warning: {self.folder} has vanished, with all that was in it; making it anew.")
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock.release()
                self.lock = RunLock(self.folder)
                write_options(self.folder, self.opt, self.defaults)
            save()
        except OSError as error:
            told = f"the checkpoint could not be saved in {self.folder}: {error}. The last good one stays"
            if self.opt.on_save_error == "stop":
                raise UserError(
                    f"{told}; make room or mend the folder, then go on with --continue_train"
                ) from None
            self._say(f"warning: {told}, and training goes on.")

    def _stop_at_failure(self, wait: bool = False) -> None:
        """UserError where a loss or gradient was not finite. On CUDA it may be told steps later, unless to `wait` for it."""
        if failure := self.model.guard.failure(wait):
            raise UserError(self._describe_failure(failure))

    def _describe_failure(self, failure: Failure) -> str:
        steps, images, paths = next(
            (entry for entry in self.recent if entry[0] == self.first_step + failure.step),
            (self.first_step + failure.step, 0, []),
        )
        return (
            f"training stopped: {', '.join(failure.names)} not finite in step {steps} (image {images}, epoch "
            f"{self.progress.epoch}) on {', '.join(map(repr, paths)) or 'images no longer known'}. No weight was updated with it. Look at "
            "those images, lower --lr, or use --precision fp32; --continue_train goes on from the last good checkpoint"
        )

    def _make_monitor(self) -> Monitor:
        opt, visdom = self.opt, None
        if opt.display_id is None or opt.display_id > 0:
            visdom = VisdomClient(
                opt.display_server,
                opt.display_port,
                opt.display_env,
                opt.display_id or 1,
                opt.display_ncols,
                opt.display_winsize,
            )
        return Monitor(
            self.folder, opt.name, html=not opt.no_html, visdom=visdom, display_winsize=opt.display_winsize
        )

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


def refuse_what_processes_cannot_share(opt: Namespace) -> None:
    """UserError for options under which several processes would not train as one."""
    for name in ("normG", "normD"):
        if getattr(opt, name) == "batch":
            raise UserError(
                f"--{name} batch would normalise each process's images apart: use instance, or a single process"
            )
    if opt.pool_size:
        raise UserError(
            "--pool_size keeps images of one process, which no resume could hand on: use 0, or a single process"
        )


def show_warning(message: Warning | str, category: type[Warning], *where) -> None:
    """Warnings as one line above the progress bar, without the line of code they came from."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
