"""The options that training and testing share, and how an option gets its value.

In rising priority: the default, the default of the model or of its generator, the value a run has saved, the
value given. docs/options.md says which options of the released codes have no effect here.
"""

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.datasets import DATASETS
from data.transforms import MODES as PREPROCESS_MODES
from models import MODELS, build
from models.speed.accelerator import choose_speed
from util.arguments import ArgumentParser, count_or_inf, gpu_list, integer
from util.errors import UserError
from util.run.run import run_folder

# Options of the released codes' commands that do nothing here.
WITHOUT_EFFECT = ("easy_label", "evaluation_freq", "display_winsize")

# Defaults of a model that hold for a length in iterations: one in epochs, where it is asked for, has the
# general ones, such as the linear decay over --n_epochs_decay.
OF_ITERATIONS = ("n_iterations", "n_iterations_decay", "lr_policy", "lr_decay_iters")


def default_name(options: Mapping[str, object]) -> str:
    """The name of a run that was given none: its data, its model and the mode of its queries."""
    model, data = str(options["model"]), Path(str(options["dataroot"])).resolve().name
    if model.startswith("qs"):
        model = f"{'qsattn' if model == 'qs' else model}_{options['QS_mode']}"
    return f"{data}_{model}"


class BaseOptions:
    """The table of options that trainings and tests add to, and their values for a command line."""

    def __init__(self):
        self.parser = ArgumentParser(self.prog, self.description, WITHOUT_EFFECT, add_help=False)
        listing = {"action": "store_const", "const": True, "help": "list the options of --model, and exit"}
        self.parser.add_argument("-h", "--help", **listing)
        self.declare()

    def declare(self) -> None:
        add, group = self.parser.add, self.parser.group
        group("run", scope="call")
        name = "DATA_qsattn_MODE or DATA_MODEL, as horse2zebra_cut"
        add("--name", None, "name of the run: its folder under checkpoints_dir", shown=name)
        add("--suffix", "", "added to the name, behind _")
        add("--checkpoints_dir", "./checkpoints", "where runs are kept")
        add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
        add("--verbose", False, "print the networks, module by module")
        which = "which checkpoint to load: latest, a number, iter_NUMBER"
        add("--epoch", "latest", which, scope="watch")
        add("--seed", 0, "of weights, data order, crops, patches", type=integer(0, 2**63 - 1), scope="fixed")
        group("data")
        folder = "folder with trainA, trainB, testA, testB (or valA, valB)"
        add("--dataroot", "./datasets/horse2zebra", folder, scope="watch")
        phase = "train" if self.is_train else "test"
        add("--phase", phase, "which folders: PHASEA and PHASEB", scope="watch")
        add("--direction", "AtoB", "what is translated into what", choices=("AtoB", "BtoA"), scope="fixed")
        add("--dataset_mode", "unaligned", "how images are paired", choices=tuple(DATASETS))
        add("--serial_batches", False, "images in order, A and B side by side, instead of at random")
        add("--num_threads", 4, "loader processes; 0: none", type=integer(0), scope="watch")
        add("--batch_size", 1, "images per step (of each process)", type=integer(1))
        add("--max_dataset_size", math.inf, "use at most this many images of each folder", type=count_or_inf)
        add("--on_bad_image", "stop", "an image that cannot be read", choices=("stop", "skip"))
        group("images")
        add("--preprocess", "resize_and_crop", "how images get their size", choices=PREPROCESS_MODES)
        add("--load_size", 286, "resize to this many pixels", type=integer(1 if self.is_train else 0))
        add("--crop_size", 256, "then crop to this many pixels", type=integer(1))
        add("--no_flip", not self.is_train, "do not mirror images at random")
        grey = "LOW,HIGH: black and white of grey images of more than 8 bits; auto: by a sample of the folder"
        add("--grey_range", "auto", grey)
        group("networks", scope="fixed")
        models = MODELS if self.is_train else (*MODELS, "test")
        add("--model", "qs", "what is trained: docs/models.md", choices=tuple(models))
        add("--CUT_mode", None, "as CUT spells it", type=str.lower, choices=("cut", "fastcut"), scope="call")
        build.add_options(add)
        self._declare_models()
        running = "in translating: batch norm by its running statistics, no dropout; false: as in training"
        group("precision and speed")
        add("--eval", True, running, scope="watch")
        precision = "of the convolutions; with bf16 also of heads and routing; the rest stays float32"
        add("--precision", "fp32", precision, choices=("fp32", "tf32", "bf16"))
        add("--channels_last", False, "keep images as (B, H, W, C) in memory; on CUDA with fused kernels")

    def _declare_models(self) -> None:
        """The rows of every model, grouped by the models that have them."""
        rows: dict[str, tuple[tuple, dict]] = {}
        owners: dict[str, tuple[str, ...]] = {}
        for name, model in MODELS.items():

            def collect(flag: str, *args, owner=name, **row) -> None:
                rows.setdefault(flag, (args, row))
                owners[flag] = (*owners.get(flag, ()), owner)

            model.add_options(collect)
        for flag, (args, row) in rows.items():
            self.parser.group(f"--model {', '.join(owners[flag])}")
            self.parser.add(flag, *args, **{**row, "only": {"model": owners[flag], **row.get("only", {})}})

    def print_help(self, model: str) -> None:
        """List the options that have an effect with a model, on stdout."""
        self.parser.list_only(self.of_model(model), "Those of another model: --model MODEL --help")
        self.parser.print_help()

    def of_model(self, model: str) -> list[str]:
        """The names of the options that have an effect with a model."""
        rows = self.parser.options.items()
        having = [name for name, row in rows if model in (row.only or {}).get("model", [model])]
        return [name for name in having if name not in MODELS[model].lacking]

    def parse(self, argv: Sequence[str] | None = None) -> Namespace:
        """The options of a command line, with `isTrain` and the names `given`, or exit status 2."""
        given = self.parser.parse_given(argv)
        if given.pop("help", False):
            model = given.get("model")
            self.print_help(model if model in MODELS else self.parser.defaults["model"])
            self.parser.exit()
        try:
            return self.resolve(given)
        except UserError as error:
            self.parser.error(str(error))

    def resolve(self, given: dict[str, object]) -> Namespace:
        """All options, from those given. UserError for impossible ones."""
        if mode := given.get("CUT_mode"):
            if given.get("model", mode) not in (mode, "cut"):
                raise UserError(f"--CUT_mode {mode} contradicts --model {given['model']}")
            given = {**given, "model": mode}
        options = self._with_defaults(given)
        if options["name"] is None:
            options["name"] = default_name(options)
        folder = run_folder(options)
        opt = Namespace(**self._with_defaults({**self.saved_values(folder, given), **given}))
        opt.isTrain, opt.given = self.is_train, sorted(given)
        opt.name, opt.suffix = folder.relative_to(opt.checkpoints_dir).as_posix(), ""  # the name has it now
        self.check(opt)
        choose_speed(opt, MODELS[opt.model])
        return opt

    def _with_defaults(self, options: dict[str, object]) -> dict[str, object]:
        """`options`, and defaults for the others: the generator's, else the model's, else the general one."""
        known = self.parser.defaults
        chosen = {**known, **options}
        own = {**MODELS[chosen["model"]].defaults, **build.network_defaults(chosen["netG"])}
        if {"n_epochs", "n_epochs_decay"} & options.keys() or options.get("n_iterations") == 0:
            for name in OF_ITERATIONS:
                own.pop(name, None)
        return {**known, **{name: value for name, value in own.items() if name in known}, **options}

    def saved_values(self, folder: Path, given: dict[str, object]) -> dict[str, object]:
        """What a run saved in `folder` contributes; by default nothing."""
        return {}

    def check(self, opt: Namespace) -> None:
        """UserError for impossible values and contradictions."""
