"""Train a translation: python train.py --dataroot ./datasets/horse2zebra --name NAME --QS_mode global

An epoch is max(|A|, |B|) images. `python train.py --help` lists all options; README.md has examples.
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace

if __name__ == "__main__":  # Ctrl-C during the imports ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from data import create_loader
from data.folders import changes, fingerprint
from data.preflight import quick_check
from models import MODELS, create_model
from models.samples import Samples
from options.describe import banner, closing, describe
from options.train_options import TrainOptions
from util import distributed
from util.console import lasting_output, say, show_warnings_as_lines
from util.device import get_device
from util.errors import UserError, entry_point
from util.run.checkpoint import seed_everything
from util.run.progress import Clock, Length
from util.run.recent_steps import RecentSteps
from util.run.run import Run
from util.run.stop_signal import StopSignal
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
            return train(opt, options, device, stop)
    except distributed.ProcessLostError as error:
        print(
            f"error: another process of this training was lost ({str(error).splitlines()[0][:200]}). Start "
            "the training again with --continue_train, unless torchrun does (--max-restarts)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # a normal exit would wait for work on the GPU that needs the lost process


def train(opt: Namespace, options: TrainOptions, device: torch.device, stop: StopSignal) -> int:
    """Train to the last epoch, or until `stop`; return the exit status."""
    # the run's folder; the data is checked first, so that a start without data makes no folder
    if distributed.rank() == 0:
        for problem in quick_check(opt):
            say(f"note: {problem}", file=sys.stderr)
    run = Run(opt, options.parser.options, MODELS[opt.model].translating(opt)[0])

    # data and model
    seed_everything(opt.seed)
    if opt.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    loader = create_loader(opt, device, rank=distributed.rank(), world_size=distributed.world_size())
    model = create_model(opt)
    model.expect_images(loader.dataset.files)
    if opt.dry_run:
        print(describe(opt, options.parser.options, model))
        print(banner(opt, model, loader, run.folder, opt.epoch_count))
        return 0

    try:
        # where to begin, and what to show
        global_batch = opt.batch_size * distributed.world_size()
        epoch_images = len(loader) * global_batch  # an incomplete last batch is left out
        files = fingerprint(loader.dataset.files, opt.dataroot)
        progress = run.begin(model, files, changes, len(loader), global_batch)
        length = Length.of(opt)
        samples = Samples(opt, model) if run.monitor and run.monitor.watchers else None
        report = Report(run.monitor, model, progress, opt, epoch_images, global_batch, samples)
        recent = RecentSteps(model, progress)
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
                recent.check()
                run.check_folder()
                report.step()

                stopping, complete = distributed.largest(stop.received), length.reached(progress)
                if stopping or complete or progress.crossed(opt.save_latest_freq, global_batch):
                    recent.check(wait=True)  # a resume would otherwise start after the failure
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

            recent.check(wait=True)
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


if __name__ == "__main__":
    sys.exit(main())
