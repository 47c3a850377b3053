"""The options of train.py."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from models.gan_loss import GAN_LOSSES
from models.qs_attn import MODES
from models.training.schedules import POLICIES
from options.arguments import integer, layer_list, number
from options.base_options import BaseOptions, read_saved_options
from options.checks import check_training

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


def add_contrast_options(add: Callable[..., None]) -> None:
    """Declare the options of the contrastive loss, which released test commands carry too."""
    add("--QS_mode", "global", "attention that selects and routes the queries", choices=tuple(MODES))
    add(
        "--qs_layers",
        None,
        "layers with QS-Attn, of --nce_layers",
        type=layer_list,
        shown="all but the first three",
    )
    add(
        "--qs_pool",
        0,
        "average QS-Attn layers down to at most this many positions a side; 0: never",
        type=integer(0),
    )
    add("--qs_window", 7, "side of the local window, odd, in positions", type=integer(1))
    add(
        "--qs_variant",
        "paper",
        "paper: the method; released: the released code's arithmetic",
        choices=("paper", "released"),
    )
    add("--lambda_GAN", 1.0, "weight of the adversarial loss", type=number(0))
    add("--lambda_NCE", 1.0, "weight of the contrastive loss", type=number(0))
    add("--nce_idt", True, "contrast B with its own translation too")
    add(
        "--nce_layers",
        [0, 4, 8, 12, 16],
        "generator layers contrasted",
        type=layer_list,
        shown="0,4,8,12,16; U-Nets 0,1,2,3,4",
    )
    add("--netF", "mlp_sample", "heads of the features; sample: none", choices=("mlp_sample", "sample"))
    add("--netF_nc", 256, "width of the heads", type=integer(1))
    add("--nce_T", 0.07, "temperature of PatchNCE", type=number(0, above=True))
    add("--num_patches", 256, "patches (queries) an image and layer", type=integer(1))
    add("--flip_equivariance", False, "mirror the input in half of the steps, and the features back")


class TrainOptions(BaseOptions):
    """python train.py [options]"""

    is_train = True
    prog = "train.py"
    description = "Train an unpaired image-to-image translation with QS-Attn, CUT or FastCUT."

    def declare(self) -> None:
        super().declare()
        add, group = self.parser.add, self.parser.group
        group("QS-Attn and PatchNCE")
        add_contrast_options(add)
        group("schedule and optimiser")
        add("--n_epochs", 200, "epochs at the initial learning rate", type=integer(0))
        add("--n_epochs_decay", 200, "epochs of decay to zero", type=integer(0))
        add("--lr", 0.0002, "initial learning rate of Adam", type=number(0, above=True))
        add("--beta1", 0.5, "Adam's first moment", type=number(0, 0.999999))
        add("--beta2", 0.999, "Adam's second moment", type=number(0, 0.999999))
        add("--lr_policy", "linear", "how the learning rate decays", choices=POLICIES)
        add("--lr_decay_iters", 50, "epochs between decays, with --lr_policy step", type=integer(1))
        add("--gan_mode", "lsgan", "adversarial objective", choices=tuple(GAN_LOSSES))
        add("--pool_size", 0, "past translations kept for the discriminator", type=integer(0))
        group("saving and resuming")
        add("--continue_train", False, "go on exactly where the run of this name stopped, with its options")
        add("--overwrite", False, "start afresh over a run of this name")
        add("--dry_run", False, "print options, networks and data counts, and exit")
        add("--epoch_count", 1, "number of the first epoch", type=integer(1))
        add("--pretrained_name", None, "start from the weights of another run (at --epoch)")
        add("--save_latest_freq", 5000, "images between saves of latest", type=integer(1))
        add("--save_epoch_freq", 5, "epochs between saves under the epoch's number", type=integer(1))
        add("--evaluation_freq", 5000, "accepted, and of no effect, as in the released code", type=integer(1))
        add("--save_by_iter", False, "save under iter_NUMBER instead of latest")
        add(
            "--deterministic",
            False,
            "deterministic algorithms of torch, where there are any; slower on a GPU",
        )
        add(
            "--on_save_error",
            "stop",
            "a checkpoint that cannot be written (full disk)",
            choices=("stop", "continue"),
        )
        group("watching")
        add("--print_freq", 100, "images between lines of losses", type=integer(1))
        add("--display_freq", 400, "images between shown images", type=integer(1))
        add("--display_ncols", 4, "images a row in visdom; 0: one window each", type=integer(0))
        add("--display_id", None, "visdom window; <= 0: no visdom", type=int, shown="a random one")
        add("--display_server", "http://localhost", "visdom server")
        add("--display_env", "main", "visdom environment")
        add("--display_port", 8097, "visdom port", type=integer(1, 65535))
        add("--update_html_freq", 1000, "images between images saved to web/", type=integer(1))
        add("--no_html", False, "write no web/ page")
        add("--display_queries", False, "show where the queries of a source image are, beside the images")
        group("speed of training")
        add("--cache_gb", 4.0, "memory for decoded images, GB; 0: decode every time", type=number(0))
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
        if opt.qs_layers is None:  # the released code's rule, where it says nothing else: the deeper layers
            opt.qs_layers = opt.nce_layers[3:] if len(opt.nce_layers) > 3 else opt.nce_layers[-1:]
        check_training(opt, self.parser.defaults)
