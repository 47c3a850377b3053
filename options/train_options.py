"""The options of train.py."""

from argparse import Namespace
from pathlib import Path

from data.transforms import crops
from models import MODELS
from models.gan_loss import GAN_LOSSES
from models.optimizers import POLICIES
from models.sides import check_pool
from options.base_options import BaseOptions
from util.arguments import as_text, integer, read_words, real_number
from util.errors import UserError
from util.run.progress import Length
from util.run.saved_options import FILE as OPTIONS_FILE
from util.run.saved_options import options_of_training, read_saved_options


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
        add("--crop_late", False, "random crops also after n_epochs; else images are resized to crop_size")
        add("--n_iterations", 0, "length in iterations (steps) instead of epochs", type=integer(0))
        add("--n_iterations_decay", 0, "iterations of decay after them", type=integer(0))
        add("--lr", 0.0002, "initial learning rate of Adam", type=real_number(0, above=True))
        add("--beta1", 0.5, "Adam's first moment", type=real_number(0, 0.999999))
        add("--beta2", 0.999, "Adam's second moment", type=real_number(0, 0.999999))
        decays = "linear; of munit step, in iterations"
        add("--lr_policy", "linear", "how the learning rate decays", choices=POLICIES, shown=decays)
        step = {"only": {"lr_policy": ("step",)}}
        add("--lr_decay_iters", 50, "epochs, or iterations, between decays", type=integer(1), **step)
        add("--lr_decay_gamma", 0.1, "factor of each decay", type=real_number(0, 1, above=True), **step)
        add("--gan_mode", "lsgan", "adversarial objective", choices=tuple(GAN_LOSSES))
        add("--pool_size", 0, "past translations kept for D", type=integer(0), scope="fixed")
        add("--deterministic", False, "deterministic algorithms of torch, where there are any")
        add("--cuda_graph", False, "capture the whole step in one CUDA graph")
        group("starting and resuming", scope="call")
        add("--continue_train", False, "continue exactly where the run stopped, with its options")
        add("--overwrite", False, "start afresh; a run of this name is renamed")
        add("--dry_run", False, "print options, networks, data counts and steps, and exit")
        config = "file of options: words of a command line, or a run's train_opt.json; given ones count more"
        add("--config", None, config)
        add("--fast", False, "the fastest options on this device, but for those given; the mathematics stays")
        number = "number of the first epoch; with --continue_train of the next one"
        add("--epoch_count", 1, number, type=integer(1), scope="watch")
        add("--pretrained_name", None, "start from another run's weights (at --epoch)", scope="watch")
        group("saving and watching", scope="watch")
        add("--save_latest_freq", 5000, "images between saves of latest", type=integer(1))
        add("--save_epoch_freq", 5, "epochs between saves under the epoch's number", type=integer(1))
        add("--save_by_iter", False, "save under iter_NUMBER instead of latest")
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
        wandb = "log to Weights & Biases, project WANDB_PROJECT; WANDB_MODE=offline: to files only"
        add("--use_wandb", False, wandb)
        add("--cache_gb", 4.0, "GB of memory for decoded images; 0: decode every time", type=real_number(0))

    def resolve(self, given: dict[str, object]) -> Namespace:
        if "config" in given:
            given = {**self._configuration(Path(str(given["config"]))), **given}
        return super().resolve(given)

    def _configuration(self, path: Path) -> dict[str, object]:
        """What a file of options gives; of a run's options those that are not its model's defaults."""
        if path.name != OPTIONS_FILE or not path.is_file():
            return self.parser.parse_given(read_words(path))
        saved = read_saved_options(path.parent, self.parser.options)
        usual = self._with_defaults({name: saved[name] for name in ("model", "netG")})
        own = {name for name, value in saved.items() if value != usual[name]} - {"name"} | {"model", "netG"}
        return {name: saved[name] for name in own if self.parser.options[name].scope != "watch"}

    def saved_values(self, folder: Path, given: dict[str, object]) -> dict[str, object]:
        """With --continue_train: the run's own options. UserError where one is given that cannot change."""
        if not given.get("continue_train"):
            return {}
        options = self.parser.options
        saved = options_of_training(folder, options)
        for name, value in saved.items():
            if options[name].scope == "fixed" and given.get(name, value) != value:
                raise UserError(
                    f"--{name} is {as_text(value)} in the run in {folder} and cannot change to "
                    f"{as_text(given[name])}: leave it out, or begin a new run with another --name"
                )
        return saved

    def check(self, opt: Namespace) -> None:
        self._refuse_without_effect(opt)
        MODELS[opt.model].check(opt)
        _check_schedule(opt)
        _check_start(opt)
        _check_image_size(opt)
        check_pool(opt)

    def _refuse_without_effect(self, opt: Namespace) -> None:
        """UserError for a given option, not at its default, that has no effect with another one."""
        for name in opt.given:
            option = self.parser.options[name]
            if getattr(opt, name) == option.default:
                continue
            if name in MODELS[opt.model].lacking:
                raise UserError(f"--{name} has no effect with --model {opt.model}: leave it out")
            for other, values in (option.only or {}).items():
                if getattr(opt, other) not in values:
                    raise UserError(
                        f"--{name} has no effect with --{other} {getattr(opt, other)}: leave it out, or give "
                        f"--{other} {' or '.join(map(str, values))}"
                    )


def _check_schedule(opt: Namespace) -> None:
    length = Length.of(opt)
    if length.total == 0:
        raise UserError("--n_epochs and --n_epochs_decay are both 0: nothing would be trained")
    if length.unit == "iterations":
        for name in {"n_epochs", "n_epochs_decay"} & set(opt.given):
            raise UserError(f"--{name} has no effect, as this training is {length} long: leave it out")
    elif opt.epoch_count > length.total:
        raise UserError(f"--epoch_count {opt.epoch_count} is after the last epoch, {length.total}")


def _check_start(opt: Namespace) -> None:
    for other in ("overwrite", "pretrained_name"):
        if opt.continue_train and other in opt.given and getattr(opt, other):
            raise UserError(f"--continue_train and --{other} contradict each other: give one of them")
    start = opt.name if opt.continue_train else opt.pretrained_name
    if start and not (folder := Path(opt.checkpoints_dir, start)).is_dir():  # before its data is missed
        raise UserError(f"there is no run {str(folder)!r} to continue from")
    if "epoch" in opt.given and opt.epoch != "latest" and not (opt.continue_train or opt.pretrained_name):
        raise UserError(
            f"--epoch {opt.epoch} says which weights to start from: give --continue_train for those of this "
            "run, or --pretrained_name for those of another"
        )


def _check_image_size(opt: Namespace) -> None:
    """Every image of a training must suit the generator's halvings and leave the discriminator a score."""
    multiple, smallest = MODELS[opt.model].size_limits(opt)
    if not crops(opt.preprocess):
        if multiple > 4:
            needed = f"the generator needs multiples of {multiple}: use a mode that crops"
            raise UserError(f"--preprocess {opt.preprocess} gives images of any size, but {needed}")
    elif opt.crop_size % multiple or opt.crop_size < smallest:
        least = -(-smallest // multiple) * multiple
        nearest = max(least, round(opt.crop_size / multiple) * multiple)
        raise UserError(
            f"--crop_size {opt.crop_size} cannot be used: the generator needs a multiple of {multiple}, the "
            f"discriminator at least {smallest} pixels. Take {nearest}"
        )
    elif opt.preprocess != "crop" and opt.load_size < opt.crop_size:
        raise UserError(f"--crop_size {opt.crop_size} is larger than --load_size {opt.load_size}")
