"""Train a translation: python train.py --dataroot ./datasets/horse2zebra --name NAME --QS_mode global

An epoch is max(|A|, |B|) images. `python train.py --help` lists the options; README.md has examples.
"""

import os
import shlex
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C during the imports ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from data import create_loader
from data.folders import changes, fingerprint, quick_check
from data.loader import Loader
from models import MODELS, create_model
from models.base_model import BaseModel
from models.samples import Samples
from options.train_options import TrainOptions
from util import distributed
from util.console import lasting_output, say
from util.device import get_device
from util.errors import UserError, entry_point
from util.run.checkpoint import seed_everything
from util.run.progress import Clock, Length
from util.run.run import Run
from util.run.saved_options import options_text
from util.run.stop_signal import StopSignal
from util.watch.monitor import Report


@lasting_output()
@entry_point
def main(argv: list[str] | None = None) -> int:
    """Train as a command line says; return the exit status."""
    options = TrainOptions()
    opt = options.parse(argv)
    device = get_device(opt.gpu_ids)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (obstacle := MODELS[opt.model].process_obstacle(opt)):
        raise UserError(f"{obstacle}, or a single process")  # before the processes connect: each refuses
    try:
        with distributed.session(device), StopSignal() as stop:
            return train(opt, options, device, stop)
    except distributed.ProcessLostError as error:
        problem = f"another process of this training was lost ({str(error).splitlines()[0][:200]})"
        print(f"error: {problem}: start it again with --continue_train", file=sys.stderr, flush=True)
        os._exit(1)  # a normal exit would wait for work on the GPU that needs the lost process


def train(opt: Namespace, options: TrainOptions, device: torch.device, stop: StopSignal) -> int:
    """Train to the last epoch, or until `stop`; return the exit status."""
    # the data comes first, so that a start without data makes no run folder
    loader = create_loader(opt, device, rank=distributed.rank(), world_size=distributed.world_size())
    if distributed.rank() == 0:
        for problem in quick_check(loader.dataset):
            say(f"note: {problem}", file=sys.stderr)
    run = Run(opt, options.parser, MODELS[opt.model].translating(opt)[0])

    seed_everything(opt.seed)
    if opt.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    model = create_model(opt)
    model.expect_images(loader.dataset.files)
    if opt.dry_run:
        own = {name: getattr(opt, name) for name in options.of_model(opt.model)}
        print(options_text(Namespace(**own), options.parser.defaults))
        print(banner(opt, model, loader, run.folder))
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
        if length.reached(progress):
            say(f"The run is complete: {length}. Raise --n_{length.unit} to continue.")
        else:
            say(banner(opt, model, loader, run.folder))

        stopping = ending = 0
        while not (ending or length.reached(progress)):
            epoch, clock = progress.epoch, Clock()
            report.begin_epoch(clock)
            for batch in clock.watch(loader.epoch(epoch, progress.position), global_batch):
                model.set_input(batch)
                model.optimize_parameters()
                progress.advance(global_batch)
                run.check()
                report.step()

                stopping = distributed.largest(stop.received)
                ending = stopping or length.reached(progress)
                if ending or progress.crossed(opt.save_latest_freq, global_batch):
                    report.save_mean()
                    numbered = [f"iter_{progress.images}"] if opt.save_by_iter else []
                    run.save(*numbered, *(["latest"] if ending or not numbered else []))
                if ending:  # within the epoch, where a longer training would continue
                    break
            else:
                model.update_learning_rate(report.mean_headline())
                progress.begin_epoch(epoch + 1)
                if epoch % opt.save_epoch_freq == 0:
                    run.save("latest", str(epoch))
                elif length.reached(progress):
                    run.save("latest")
            report.end_epoch()
            if not ending:
                took = f"\t Time Taken: {time.perf_counter() - clock.begun:.0f} sec"
                rate = f"learning rate now {model.learning_rate:.7f}"
                say(f"End of epoch {epoch} / {report.last_epoch} {took}, {rate}, {report.time_left} left")
        place = ["--checkpoints_dir", opt.checkpoints_dir] if "checkpoints_dir" in opt.given else []
        words = shlex.join(["--name", opt.name, *place])
        if stopping:
            say(f"Stopped in epoch {progress.epoch} after {progress.images} images, saved.")
            say(f"Continue:  train.py {words} --continue_train")
        say(f"Translate: python test.py {words}")
        return 128 + stopping if stopping else 0  # as shells have it
    finally:
        loader.close()
        run.close()


def banner(opt: Namespace, model: BaseModel, loader: Loader, folder: Path) -> str:
    """What is trained here: model, device, length, data, networks."""
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    counts = ", ".join(f"{count} images {domain}" for domain, count in loader.dataset.sizes.items())
    sizes = {name: sum(p.numel() for p in net.parameters()) / 1e6 for name, net in model.networks.items()}
    length = Length.of(opt)
    steps = round(length.in_epochs(len(loader)) * len(loader))
    processes = distributed.world_size()
    together = f" in each of {processes} processes" if processes > 1 else ""
    lines = [
        f"Training {opt.name} (--model {opt.model}) on {device}, {length}, {steps} steps, in {folder}",
        f"  data:       {opt.dataroot}: {counts}; {len(loader)} steps per epoch",
        f"  batch size: {opt.batch_size}{together}",
        "  parameters: " + ", ".join(f"{name} {size:.3f} M" for name, size in sizes.items()),
    ]
    return "\n".join([*lines, *(map(str, model.networks.values()) if opt.verbose else [])])


if __name__ == "__main__":
    sys.exit(main())
