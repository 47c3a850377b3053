"""The options of test.py."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

from models import MODELS, option_defaults
from options.base_options import BaseOptions
from options.saved import read_saved_options
from util.arguments import count_or_inf

# Options taken from the run if they are not given, besides those of its model and networks.
FROM_THE_RUN = "model dataroot dataset_mode direction input_nc output_nc crop_size preprocess eval".split()


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
        group("any photographs")
        add(
            "--input",
            None,
            "an image or a folder of images of any size; no data set; --load_size scales the shorter side",
        )
        add(
            "--output",
            None,
            "folder for the translations (or, of one image, a .png file)",
            shown="results/NAME/INPUT's name",
        )
        acting = {name for model in MODELS.values() for name in model.translation_options}
        self.without_effect |= dict.fromkeys(self.model_options - acting, "it acts in training alone")

    def saved_defaults(self, folder: Path, base: dict[str, object]) -> dict[str, object]:
        saved = read_saved_options(folder, self.parser) or {}
        self.trained_direction = saved.get("direction", base["direction"])
        names = {*FROM_THE_RUN, *option_defaults(saved.get("model", base["model"]))}
        return {name: value for name, value in saved.items() if name in names}

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        opt.trained_direction = self.trained_direction
        if "load_size" not in opt.given:
            opt.load_size = opt.crop_size  # resize straight to the size, without a crop
        if opt.output and not opt.input:
            self.parser.error("--output says where the images of --input go: give --input too")
