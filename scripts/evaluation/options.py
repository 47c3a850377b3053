"""The options of scripts/evaluate.py: how translations are judged, and those of test.py that name the run."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from options.test_options import TestOptions
from scripts.words import option_words
from util.arguments import integer

METRICS = ("fid", "kid", "swd", "fd", "kd", "class", "stripes", "structure", "segmentation")
# The options of test.py that --help lists; the others are taken as well.
LISTED = set(
    "name suffix checkpoints_dir pretrained results_dir dataroot phase direction epoch gpu_ids seed eval "
    "num_test max_dataset_size batch_size num_threads preprocess load_size crop_size precision".split()
)


def add_judging(add: Callable) -> None:
    """Declare the options that choose networks and their files; a study takes them too."""
    add("--inception_weights", None, "pytorch-fid's weights file, for fid and kid", type=Path)
    add("--classifier", "squeezenet1_1", "a torchvision classifier, for fd, kd and class")
    add("--classifier_weights", None, "its weights file", type=Path)
    add("--class_index", None, "a class of it, from 0 (ImageNet's zebra: 340)", type=integer(0))
    add("--dino_weights", None, "the official file of DINO's ViT-B/8, for structure", type=Path)


class EvaluateOptions(TestOptions):
    """python scripts/evaluate.py [options]"""

    prog = "scripts/evaluate.py"
    description = (
        "Judge translations by FID, KID, SWD, a classifier's distances, stripes, structure or Cityscapes "
        "scores."
    )

    def declare(self) -> None:
        add, group = self.parser.add, self.parser.group
        group("what is judged, if not results/NAME/PHASE_EPOCH against the data set")
        add("--epochs", None, "all, or a list as 100,200,latest: translate with each checkpoint and judge it")
        add("--fake", None, "a folder of translations", type=Path)
        add("--real", None, "a folder of real images to compare with", type=Path)
        add("--pred", None, "a folder of predicted Cityscapes label maps", type=Path)
        add("--label", None, "a folder of true label maps", type=Path)
        group("how it is judged")
        add("--metrics", None, f"a list of {', '.join(METRICS)}", shown="swd, and all whose files are given")
        add_judging(add)
        add("--kid_subsets", 100, "random subsets of KID and KD", type=integer(1))
        add("--kid_subset_size", None, "images in each", type=integer(2), shown="1000, or the smaller set")
        size = "side in pixels for SWD, 16 * 2^k"
        add("--swd_size", None, size, type=integer(16), shown="256, or what fits")
        add("--masks", None, "masks for stripes", type=Path, shown="DATAROOT/masks")
        inputs = "images that were translated, for structure"
        add("--inputs", None, inputs, type=Path, shown="real_A beside the translations")
        add("--feature_batch_size", 32, "images at a time; changes no number", type=integer(1))
        receipt = "beside the results, or evaluation.json"
        add("--receipt", None, "file to write the receipt to", type=Path, shown=receipt)
        self.own = set(self.parser.defaults)
        super().declare()
        for action in self.parser._actions:
            if action.dest not in self.own | LISTED | {"help", "version"}:
                action.help = argparse.SUPPRESS
        self.parser.epilog = "All other options of test.py are taken too: python test.py --help lists them."

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        if opt.input:
            self.parser.error("--input belongs to test.py: a folder of translations is given with --fake")
        if opt.pretrained and opt.epochs:
            self.parser.error("--pretrained is one checkpoint, --epochs names several of a run: give one")
        if bool(opt.pred) != bool(opt.label):
            self.parser.error("--pred and --label go together: predicted and true label maps")
        if opt.fake and not opt.real:
            self.parser.error("--fake needs the real images to compare with: --real DIR")
        if opt.fake and opt.epochs:
            self.parser.error("--epochs makes translations with checkpoints, --fake names existing ones")
        opt.masks = opt.masks or Path(opt.dataroot, "masks")
        opt.metrics = self._metrics_given(opt) if opt.metrics else self._metrics_possible(opt)

    def _metrics_given(self, opt: Namespace) -> list[str]:
        error = self.parser.error
        metrics = [metric.strip().lower() for metric in opt.metrics.split(",") if metric.strip()]
        for metric in metrics:
            if metric not in METRICS:
                error(f"--metrics {metric} is unknown; there are {', '.join(METRICS)}")
        if ("segmentation" in metrics) != bool(opt.pred) or (opt.pred and len(metrics) > 1):
            error("--metrics segmentation stands alone, and it alone takes --pred DIR --label DIR")
        if "class" in metrics and opt.class_index is None:
            error("--metrics class needs --class_index N, such as 340, ImageNet's zebra")
        if "stripes" in metrics and not self._stripes_possible(opt):
            error(
                f"--metrics stripes needs a run AtoB on a set with masks, and no --real; masks: {opt.masks}"
            )
        if "structure" in metrics and not self._inputs_known(opt):
            error("--metrics structure compares translations with what was translated: give --inputs DIR")
        return metrics

    def _metrics_possible(self, opt: Namespace) -> list[str]:
        if opt.pred:
            return ["segmentation"]
        metrics = ["swd"]
        metrics += ["fid", "kid"] if opt.inception_weights else []
        metrics += ["fd", "kd"] if opt.classifier_weights else []
        metrics += ["class"] if opt.classifier_weights and opt.class_index is not None else []
        metrics += ["stripes"] if self._stripes_possible(opt) else []
        metrics += ["structure"] if opt.dino_weights and self._inputs_known(opt) else []
        return metrics

    @staticmethod
    def _stripes_possible(opt: Namespace) -> bool:
        return opt.masks.is_dir() and not opt.real and opt.direction == "AtoB"

    @staticmethod
    def _inputs_known(opt: Namespace) -> bool:
        return bool(opt.inputs) or not opt.fake

    def words_for_test(self, opt: Namespace, epoch: str) -> list[str]:
        """The command line of test.py that translates with another checkpoint of the same run."""
        values = {name: getattr(opt, name) for name in opt.given if name not in self.own}
        values |= {"name": opt.name, "suffix": "", "epoch": epoch, "gpu_ids": opt.gpu_ids or [-1]}
        return option_words(values)
