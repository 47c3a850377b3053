"""The judge of translations: the real images, networks and metrics of one call of scripts/evaluate.py."""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets import domain_folders
from util.device import get_device
from util.metrics.dino import load_dino
from util.metrics.evaluation import Evaluation, Evaluator
from util.metrics.features import INCEPTION_SHA256, FeatureNetwork, load_classifier, load_inception
from util.metrics.image_set import ImageSet
from util.metrics.sliced_wasserstein import fitting_size
from util.metrics.stripes import stripe_report
from util.metrics.structure import check_pairs, structure_distance


class Judge:
    """Compares folders of translations with one set of real images."""

    def __init__(self, opt: Namespace) -> None:
        device = get_device(opt.gpu_ids)
        self.opt, self.networks = opt, {}
        if {"fid", "kid"} & set(opt.metrics):
            network = self.networks["inception"] = load_inception(opt.inception_weights, device)
            if not network.record["sha256"].startswith(INCEPTION_SHA256):
                published = f"the published file, whose sha256 begins with {INCEPTION_SHA256}"
                warn(f"{opt.inception_weights} is not {published}: its FID agrees with no other")
        if {"fd", "kd", "class"} & set(opt.metrics):
            self.networks["classifier"] = load_classifier(opt.classifier, opt.classifier_weights, device)
        self.dino = load_dino(opt.dino_weights, device) if "structure" in opt.metrics else None
        self.sources, real = (None, opt.real) if opt.real else domain_folders(opt.dataroot, opt.phase)
        if opt.direction == "BtoA" and not opt.real:
            self.sources, real = real, self.sources
        self.real = ImageSet(real)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Made with the first folder, which may choose the size for SWD."""
        opt = self.opt

        def networks(**metrics: str) -> list[FeatureNetwork]:
            return [self.networks[kind] for metric, kind in metrics.items() if metric in opt.metrics]

        return Evaluator(
            self.real,
            frechet=networks(fid="inception", fd="classifier"),
            kernel=networks(kid="inception", kd="classifier"),
            classes=[(network, opt.class_index) for network in networks(**{"class": "classifier"})],
            swd_size=opt.swd_size if "swd" in opt.metrics else None,
            kid_subsets=opt.kid_subsets,
            kid_subset_size=opt.kid_subset_size,
            batch_size=opt.feature_batch_size,
            seed=opt.seed,
        )

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Judge a folder of translations: print its numbers, and return what the receipt says of it."""
        opt, fake = self.opt, ImageSet(folder)
        if opt.swd_size is None:  # one size for a whole sweep: that of its first set
            opt.swd_size = fitting_size(min(min(size) for side in (fake, self.real) for size in side.sizes))
        if set(fake.sizes) != set(self.real.sizes):
            sets = f"the images of {folder} and {self.real.folder}"
            warn(f"{sets} differ in size, which affects every distance")
        record = dict(fake.record)
        if self.sources is not None:
            record["of"] = len(ImageSet(self.sources))
            if len(fake) < record["of"]:
                found = f"{folder}: {len(fake)} translations of {record['of']} images"
                warn(f"{found}; distances are larger with fewer images")
        result = self.evaluator.evaluate(fake)
        if "stripes" in opt.metrics:
            report = stripe_report(self.sources, folder, self.real.folder, opt.masks)
            result.add("stripes-gained", report["gained"], **report)
            result.add("stripes-background", report["background"])
        if self.dino:
            inputs = ImageSet(opt.inputs or folder.parent / "real_A")
            check_pairs(inputs.paths, fake.paths)
            images = (side.images("structure") for side in (inputs, fake))
            distances = structure_distance(*images, self.dino)
            result.add("structure", 100 * np.mean(distances), images=len(distances), inputs=inputs.record)
        print(f"{folder}: {len(fake)} translations against {len(self.real)} images of {self.real.folder}")
        print_numbers(result)
        return {"numbers": result.numbers, "numbers_from": result.details, "fake": record}

    def record(self) -> dict[str, Any]:
        """For the receipt: the real images, the networks and the seed."""
        networks = {network.name: network.record for network in self.networks.values()}
        networks |= {"dino_vitbase8": self.dino.record} if self.dino else {}
        return {"real": self.real.record, "networks": networks, "seed": self.opt.seed}


def print_numbers(result: Evaluation) -> None:
    """One line for each number, with what it was computed from."""
    for name, number in result.numbers.items():
        details, note = result.details[name], ""
        if "std" in details:
            subsets = f"{details['subsets']} subsets of {details['subset_size']}"
            note = f"standard deviation {details['std']:.4f} over {subsets}"
        elif "levels" in details:
            levels = ", ".join(f"{size}: {distance:.2f}" for size, distance in details["levels"].items())
            note = f"{details['images_per_side']} images per side; levels {levels}"
        elif "unit" in details:
            note = f"{details['unit']}; of the real images {details['real']:.2f} {details['unit']}"
        print(f"  {name:22}{number:12.4f}  {note}".rstrip())


def warn(message: str) -> None:
    """A warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)
