"""The options of test.py."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

from options.arguments import count_or_inf
from options.base_options import BaseOptions, read_saved_options
from options.train_options import add_contrast_options

# What a trained run tells the test, unless it is given: the networks, the data and the image size.
FROM_THE_RUN = (
    "model dataroot dataset_mode direction input_nc output_nc netG ngf normG no_dropout no_antialias no_antialias_up "
    "crop_size preprocess"
).split()


class TestOptions(BaseOptions):
    """python test.py [options]"""

    __test__ = False  # not a test case, whatever pytest thinks of the name
    is_train = False
    prog = "test.py"
    description = "Translate the test images of a data set, or any photographs, with a trained generator."

    def declare(self) -> None:
        super().declare()
        add, group = self.parser.add, self.parser.group
        group("testing")
        add("--results_dir", "./results/", "where results/NAME/PHASE_EPOCH/ is written")
        add("--num_test", math.inf, "translate at most this many images", type=count_or_inf)
        add("--eval", False, "evaluation mode: batch norm by its running statistics, no dropout")
        group("any photographs")
        add(
            "--input",
            None,
            "an image or a folder of images of any size, without a data set; --load_size scales the shorter side",
        )
        add(
            "--output",
            None,
            "folder for the translations (or, of one image, a .png file)",
            shown="results/NAME/INPUT's name",
        )
        before = set(self.parser.defaults)
        group("of training: accepted, as released test commands have them, and of no effect")
        add_contrast_options(add)
        chosen_in_training = dict.fromkeys(set(self.parser.defaults) - before, "it acts in training alone")
        self.without_effect |= chosen_in_training

    def saved_defaults(self, folder: Path, base: dict[str, object]) -> dict[str, object]:
        saved = read_saved_options(folder, self.parser) or {}
        return {name: saved[name] for name in FROM_THE_RUN if name in saved}

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        if "load_size" not in opt.given:
            opt.load_size = opt.crop_size  # resize straight to the size, without a crop
        if opt.output and not opt.input:
            self.parser.error("--output says where the images of --input go: give --input too")
