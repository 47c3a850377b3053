"""The options of train.py."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from models.gan_loss import GAN_LOSSES
from models.schedules import POLICIES
from options.base_options import BaseOptions
from options.checks import check_training
from options.saved import read_saved_options
from util.arguments import integer, real_number

# Options that belong to one call rather than to the run: not taken over by --continue_train, free to change.
OF_THE_CALL = (
    "continue_train",
    "overwrite",
    "dry_run",
    "name",
    "suffix",
    "checkpoints_dir",
    "gpu_ids",
    "isTrain",
    "verbose",
)


# Options that change neither weights nor losses, so a resume does not report a change.
WATCHING = (
    "epoch",
    "epoch_count",
    "num_threads",
    "cache_gb",
    "save_latest_freq",
    "save_epoch_freq",
    "save_by_iter",
    "print_freq",
    "display_freq",
    "display_ncols",
    "display_id",
    "display_server",
    "display_env",
    "display_port",
    "update_html_freq",
    "no_html",
    "eval",
    "phase",
    "dataroot",
)


class TrainOptions(BaseOptions):
    """python train.py [options]"""

    is_train = True
    prog = "train.py"
    description = "Train an image-to-image translation."

    def declare(self) -> None:
        super().declare()
        add, group = self.parser.add, self.parser.group
        group("schedule and optimiser")
        add("--n_epochs", 200, "epochs at the initial learning rate", type=integer(0))
        add("--n_epochs_decay", 200, "epochs of decay to zero", type=integer(0))
        add(
            "--crop_late",
            False,
            "random crops also after n_epochs; false: images are resized to crop_size then",
        )
        add("--n_iterations", 0, "length in iterations (steps) instead of epochs", type=integer(0))
        add("--n_iterations_decay", 0, "iterations of decay after them", type=integer(0))
        add("--lr", 0.0002, "initial learning rate of Adam", type=real_number(0, above=True))
        add("--beta1", 0.5, "Adam's first moment", type=real_number(0, 0.999999))
        add("--beta2", 0.999, "Adam's second moment", type=real_number(0, 0.999999))
        add(
            "--lr_policy",
            "linear",
            "how the learning rate decays",
            choices=POLICIES,
            shown="linear; step of munit in iterations",
        )
        step = {"lr_policy": ("step",)}
        add(
            "--lr_decay_iters",
            50,
            "epochs between decays, or iterations where the length is in iterations",
            type=integer(1),
            only=step,
        )
        add("--lr_decay_gamma", 0.1, "factor of each decay", type=real_number(0, 1, above=True), only=step)
        add("--gan_mode", "lsgan", "adversarial objective", choices=tuple(GAN_LOSSES))
        add("--pool_size", 0, "past translations kept for the discriminator", type=integer(0))
        group("saving and resuming")
        add(
            "--continue_train", False, "continue exactly where the run of this name stopped, with its options"
        )
        add("--overwrite", False, "start afresh over a run of this name")
        add("--dry_run", False, "print options, networks and data counts, and exit")
        add("--epoch_count", 1, "number of the first epoch", type=integer(1))
        add("--pretrained_name", None, "start from the weights of another run (at --epoch)")
        add("--save_latest_freq", 5000, "images between saves of latest", type=integer(1))
        add("--save_epoch_freq", 5, "epochs between saves under the epoch's number", type=integer(1))
        add("--save_by_iter", False, "save under iter_NUMBER instead of latest")
        add(
            "--deterministic",
            False,
            "deterministic algorithms of torch, where there are any; slower on a GPU",
        )
        group("watching")
        add("--print_freq", 100, "images between lines of losses", type=integer(1))
        add("--display_freq", 400, "images between shown images", type=integer(1))
        add("--display_ncols", 4, "images per row in visdom; 0: one window each", type=integer(0))
        add("--display_id", None, "visdom window; <= 0: no visdom", type=int, shown="a random one")
        add("--display_server", "http://localhost", "visdom server")
        add("--display_env", "main", "visdom environment")
        add("--display_port", 8097, "visdom port", type=integer(1, 65535))
        add("--update_html_freq", 1000, "images between images saved to web/", type=integer(1))
        add("--no_html", False, "write no web/ page")
        add("--tensorboard", False, "write curves, images and options for TensorBoard")
        add("--use_wandb", False, "log to Weights & Biases; WANDB_MODE=offline: to files only")
        add("--wandb_project_name", "QS-Attn", "project in Weights & Biases", only={"use_wandb": (True,)})
        group("speed of training")
        add("--cache_gb", 4.0, "memory for decoded images, GB; 0: decode every time", type=real_number(0))
        add("--cuda_graph", False, "capture the whole step in one CUDA graph")
        add("--fast", False, "the options fastest on this device, but for those given; the mathematics stays")

    def saved_defaults(self, folder: Path, base: dict[str, object]) -> dict[str, object]:
        """With --continue_train: the run's own options, but those of the call."""
        if not base["continue_train"]:
            return {}
        saved = read_saved_options(folder, self.parser) or {}
        return {
            name: value
            for name, value in saved.items()
            if name in self.parser.defaults and name not in OF_THE_CALL
        }

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        check_training(opt, self.parser)
