"""The options of test.py, and those saved with what a command names: a run, weights, a pretrained model."""

import math
import sys
from argparse import Namespace
from pathlib import Path

from models import MODELS, option_defaults, require_model
from models.inference import final_load_size, pretrained_list, pretrained_run, translate_size
from models.weights import architecture, bare_generator, weights_file
from options.base_options import BaseOptions
from util.arguments import as_text, count_or_inf, integer, note_no_effect
from util.errors import UserError
from util.run.saved_options import read_saved_options, saved_options
from util.weight_files import read_tensors

# Options taken from the run if they are not given, besides those of its model and networks.
FROM_THE_RUN = "model dataroot dataset_mode direction crop_size preprocess grey_range eval".split()
OF_A_RUN = {"name", "suffix", "checkpoints_dir", "epoch"}  # options that say where a run's weights are


def name_list(text: str) -> list[str]:
    """Comma-separated names, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


class TestOptions(BaseOptions):
    """python test.py [options]"""

    __test__ = False  # pytest would collect it by its name
    is_train = False
    prog = "test.py"
    description = "Translate the test images of a data set, or any photographs, with a trained generator."

    def declare(self) -> None:
        super().declare()
        add, group = self.parser.add, self.parser.group
        group("testing")
        add("--pretrained", None, "a model that needs no training, instead of --name")
        add("--list_pretrained", False, "list those models")
        add("--results_dir", "./results/", "where results/NAME/PHASE_EPOCH/ is written")
        add("--num_test", math.inf, "translate at most this many images", type=count_or_inf)
        group("styles, of a model that has them (munit)")
        add("--num_styles", 1, "translations per image, each of its own style", type=integer(1, 10_000))
        add("--style_seed", 0, "seed of the styles", type=integer(0, 2**63 - 1))
        add("--style_image", None, "image of the target domain whose style is used")
        group("domains, of a model that has many (qs_multi, cut_multi, stargan)")
        add("--domain", [], "translate to these of its domains", type=name_list, shown="all")
        group("any photographs")
        photo = "image or folder; large ones are translated at the run's size or --load_size, 0: their own"
        add("--input", None, photo)
        where = "folder for the translations (or, of one image, a .png or .jpg file)"
        add("--output", None, where, shown="results/NAME/INPUT's name")

    def resolve(self, given: dict[str, object]) -> Namespace:
        if given.get("model") == "test":  # CycleGAN's name for one folder and the run's own generator
            given = {"dataset_mode": "single", **given}
            del given["model"]
        if given.get("list_pretrained"):
            print(pretrained_list())
            sys.exit()
        return super().resolve(with_pretrained(given))

    def saved_values(self, folder: Path, given: dict[str, object]) -> dict[str, object]:
        base = {**self.parser.defaults, **given}
        saved = read_saved_options(folder, self.parser.options) or _options_of_weights(folder, base)
        if "model" in saved:
            require_model(saved["model"], base["name"])
        self.of_the_run = saved_options(folder) or saved
        self.trained_direction = saved.get("direction", base["direction"])
        names = {*FROM_THE_RUN, *option_defaults(saved.get("model", base["model"]))}
        return {name: value for name, value in saved.items() if name in names}

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        opt.trained_direction = self.trained_direction
        self.check_size(opt)
        _check_styles(opt)
        self.check_domains(opt)
        if opt.output and not opt.input:
            raise UserError("--output says where the images of --input go: give --input too")
        acting = {name for model in MODELS.values() for name in model.translation_options}
        idle = [n for n in opt.given if "model" in (self.parser.options[n].only or {}) and n not in acting]
        note_no_effect(idle, "it acts in training alone")

    def check_size(self, opt: Namespace) -> None:
        """Test images have the run's translate_size or the scale of training; whole but for a given crop."""
        opt.translate_size = translate_size({"crop_size": opt.crop_size, **self.of_the_run})
        opt.whole = not {"preprocess", "crop_size"} & set(opt.given)
        if "load_size" not in opt.given:
            best = self.of_the_run.get("translate_size") or final_load_size(self.of_the_run)
            opt.load_size = best if opt.whole else opt.crop_size
        elif opt.load_size == 0 and not opt.input:
            raise UserError("--load_size 0 leaves photographs as they are: it goes with --input")

    def check_domains(self, opt: Namespace) -> None:
        """The targets, all domains by default. UserError for what cannot be one."""
        if "domains" not in MODELS[opt.model].translation_options:
            if given := sorted({"domain", "domains"} & set(opt.given)):
                raise UserError(f"--{given[0]} has no effect with --model {opt.model}: leave it out")
            opt.domains = []
            return
        if "direction" in opt.given:
            raise UserError(f"--model {opt.model} has domains, no direction: say the target with --domain")
        own = self.of_the_run.get("domains", opt.domains)
        if own not in (opt.domains, [str(number) for number in range(len(opt.domains))]):
            raise UserError(f"--domains of {opt.name} are {as_text(own)}: leave them out")
        if unknown := [name for name in opt.domain if name not in opt.domains]:
            there = ", ".join(opt.domains)
            raise UserError(f"--domain {unknown[0]} is none of {opt.name}: give some of {there}")
        opt.domain = opt.domain or opt.domains
        opt.max_dataset_size = min(opt.max_dataset_size, opt.num_test)  # of each domain


def _check_styles(opt: Namespace) -> None:
    """UserError for style options of a model without styles, or a style by both image and seed."""
    given = [name for name in ("num_styles", "style_seed", "style_image") if name in opt.given]
    if given and not MODELS[opt.model].styled:
        raise UserError(f"--{given[0]} has no effect with --model {opt.model}, which has no styles")
    if opt.style_image and given != ["style_image"]:
        raise UserError(f"--{given[0]} draws styles, but --style_image gives one: leave one of them out")


def _options_of_weights(folder: Path, options: dict[str, object]) -> dict[str, object]:
    """The generator's options that the weights of a folder without saved options imply (CycleGAN's, say)."""
    epoch = str(options["epoch"])
    network = bare_generator(folder, epoch, str(options["direction"]))
    path = weights_file(folder, epoch, network)
    found = architecture(read_tensors(path)) if path.is_file() else {}
    return {"model": "cycle_gan", "direction": "AtoB", **found} if found and network != "G" else found


def results_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the test set's translations by a checkpoint: results_dir/NAME/PHASE_EPOCH."""
    ending = "" if opt.direction == opt.trained_direction else f"_{opt.direction}"
    return Path(opt.results_dir, opt.name, f"{opt.phase}_{epoch}{ending}")


def with_pretrained(given: dict[str, object]) -> dict[str, object]:
    """The options given; with --pretrained NAME among them, those that name its run, fetched if need be."""
    if not (name := given.get("pretrained")):
        return given
    if place := sorted(OF_A_RUN & given.keys()):
        raise UserError(f"--{place[0]} names a run, and --pretrained a model instead: give one")
    if not (folder := pretrained_run(name)):
        listed = "test.py --list_pretrained lists them, and a run of yours is named by --name"
        raise UserError(f"there is no pretrained model {name}: {listed}")
    run = {"checkpoints_dir": str(folder.parent.parent), "name": f"{folder.parent.name}/{folder.name}"}
    return {**given, **run}
