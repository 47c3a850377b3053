"""The judge of translations: its options, and the real images, networks and metrics of one evaluation."""

from __future__ import annotations

import copy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.folders import domain_folder, domain_folders
from util.arguments import integer
from util.device import get_device
from util.metrics.coats import Coats
from util.metrics.frechet import frechet_distance
from util.metrics.image_set import ImageSet
from util.metrics.kernel import kernel_inception_distance
from util.metrics.networks import (
    INCEPTION,
    LITE,
    classifier_weights,
    clean,
    extract,
    load_classifier,
    load_inception,
)
from util.metrics.sliced_wasserstein import fitting_size, level_sizes, pyramid_distance, pyramid_patches
from util.metrics.stripes import stripe_report
from util.metrics.structure import DINO, check_pairs, load_dino, structure_distance

METRICS = tuple("fid fid_clean kid swd fd kd class stripes coats structure lpips segmentation".split())
# The network of a metric of features, and how it compares two sets.
OF_FEATURES = {
    "fid": ("inception", "frechet"),
    "fid_clean": ("inception-clean", "frechet"),
    "kid": ("inception", "kernel"),
    "fd": ("classifier", "frechet"),
    "kd": ("classifier", "kernel"),
    "class": ("classifier", "class"),
}


def higher_is_better(name: str) -> bool:
    """Whether a larger number of this name is better; of distances the smaller is."""
    return name.startswith("class-") or name in ("stripes-gained", "coats-taken")


def add_judging(add: Callable) -> None:
    """Declare the options that choose networks and their files; a study takes them too."""
    cached = "torch's cache"
    add("--inception_weights", None, "pytorch-fid's file, for fid and kid", type=Path, shown=cached)
    add("--classifier", "squeezenet1_1", f"a torchvision classifier, or {LITE}, for fd, kd and class")
    add("--classifier_weights", None, "its weights file", type=Path, shown=cached)
    add("--class_index", None, "a class of ImageNet, from 0 (zebra: 340)", type=integer(0, 999))
    add("--dino_weights", None, "the official file of DINO's ViT-B/8, for structure", type=Path, shown=cached)
    add("--download_weights", False, "fetch files that the metrics need (unnamed: those of FID) to there")


class Judge:
    """Compares folders of translations with one set of real images, which is processed once.

    Args:
        real: the folder of these; None: what the options name.
    """

    def __init__(self, opt: Namespace, real: Path | None = None) -> None:
        device, download = get_device(opt.gpu_ids), opt.download_weights
        self.opt, self.networks, self.dino = opt, {}, None
        needed = {OF_FEATURES[metric][0] for metric in opt.metrics if metric in OF_FEATURES}
        if needed & {"inception", "inception-clean"}:
            network = load_inception(INCEPTION.find(opt.inception_weights, download), device)
            self.networks |= {"inception": network, "inception-clean": clean(network)}
        if "classifier" in needed:
            path = classifier_weights(opt.classifier).find(opt.classifier_weights, download)
            self.networks["classifier"] = load_classifier(opt.classifier, path, device)
        if "structure" in opt.metrics:
            self.dino, self.dino_record = load_dino(DINO.find(opt.dino_weights, download), device)
        self.sources, real = None, opt.real or real
        if not real:
            self.sources, real = domain_folders(opt.dataroot, opt.phase, opt.direction)
        self.real = ImageSet(real)
        self.of_real: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # network -> features and classes

    def against(self, real: Path) -> Judge:
        """The same judge with other real images."""
        other = copy.copy(self)
        other.real, other.of_real = ImageSet(real), {}
        return other

    def evaluate(
        self, folder: Path, sources: Path | None = None, inputs: Path | None = None
    ) -> dict[str, Any]:
        """The numbers of a folder of translations, with notes and what the receipt says of the folder.

        Args:
            sources: the images that there are to translate; None: what the options name.
            inputs: those that were translated; None: real_A beside the folder.
        """
        opt, fake, sources = self.opt, ImageSet(folder), sources or self.sources
        if opt.swd_size is None:  # one size for a whole sweep: that of its first set
            opt.swd_size = fitting_size(min(map(min, fake.sizes | self.real.sizes)))
        if fake.sizes != self.real.sizes:
            sets = f"the images of {folder} and {self.real.folder}"
            warn(f"{sets} differ in size, which affects every distance")
        if sources is not None and len(fake) < len(ImageSet(sources)):
            found = f"{folder}: {len(fake)} translations of {len(ImageSet(sources))} images"
            warn(f"{found}; distances are larger with fewer images")
        numbers: dict[str, float] = {}
        notes: dict[str, str] = {}

        def add(name: str, number: float, note: str = "") -> None:
            numbers[name], notes[name] = float(number), note

        self._compare_features(fake, add)
        if "swd" in opt.metrics:
            self._compare_patches(fake, add)
        if "stripes" in opt.metrics:
            report = stripe_report(sources, folder, self.real.folder, opt.masks)
            means = ", ".join(f"{name}: {report[name]:.4f}" for name in ("real_A", "fake_B", "real_B"))
            add("stripes-gained", report["gained"], means)
            add("stripes-background", report["background"])
        if self.dino:
            inputs = ImageSet(opt.inputs or inputs or folder.parent / "real_A")
            check_pairs(inputs.paths, fake.paths)
            images = (side.images("structure") for side in (inputs, fake))
            add("structure", 100 * np.mean(structure_distance(*images, self.dino)), f"from {inputs.folder}")
        compared = f"{folder}: {len(fake)} translations against {len(self.real)} images of {self.real.folder}"
        return {"numbers": numbers, "notes": notes, "fake": fake.record, "compared": compared}

    def _compare_features(self, fake: ImageSet, add: Callable) -> None:
        """Frechet and kernel distances, and the share of a class, by the features of each network."""
        opt = self.opt
        for kind, network in self.networks.items():
            asked = [how for metric, (of, how) in OF_FEATURES.items() if of == kind and metric in opt.metrics]
            if not asked:
                continue
            if kind not in self.of_real:
                self.of_real[kind] = extract(network, self.real.images(network.name))
            ours, classes = extract(network, fake.images(network.name))
            theirs, real_classes = self.of_real[kind]
            if "frechet" in asked:
                add(network.label("frechet"), frechet_distance(ours, theirs))
            if "kernel" in asked:
                size = opt.kid_subset_size or min(1000, len(ours), len(theirs))
                mean, std = kernel_inception_distance(ours, theirs, size, opt.kid_subsets, opt.seed)
                note = f"standard deviation {std:.4f} over {opt.kid_subsets} subsets of {size}"
                add(network.label("kernel"), mean, note)
            if "class" in asked:
                share, real = (100 * (found == opt.class_index).mean() for found in (classes, real_classes))
                name = f"class-{opt.class_index}-{network.name}"
                add(name, share, f"%; of the real images {real:.2f} %")

    def _compare_patches(self, fake: ImageSet, add: Callable) -> None:
        """SWD of equally many images per side: of the larger set a random part, drawn by the seed."""
        images = min(len(fake), len(self.real))
        sides = []
        for patches in (self._patches(fake), self._patches_of_real):
            chosen = np.random.default_rng(self.opt.seed).choice(len(patches[0]), images, replace=False)
            sides.append([level[np.sort(chosen)] for level in patches])
        distances = pyramid_distance(*sides, seed=self.opt.seed)
        found = zip(level_sizes(self.opt.swd_size), distances, strict=True)
        levels = ", ".join(f"{size}: {distance:.2f}" for size, distance in found)
        add("SWD", np.mean(distances), f"{images} images per side; levels {levels}")

    @cached_property
    def _patches_of_real(self) -> list[np.ndarray]:
        return self._patches(self.real)

    def _patches(self, images: ImageSet) -> list[np.ndarray]:
        size = self.opt.swd_size
        return pyramid_patches(images.squares(size), size, self.opt.seed)

    def record(self) -> dict[str, Any]:
        """For the receipt: the real images and the networks."""
        networks = {network.name: network.record for network in self.networks.values()}
        networks |= {"dino_vitbase8": self.dino_record} if self.dino else {}
        return {"real": self.real.record, "networks": networks}


class DomainsJudge:
    """Judges each ordered pair of domains, a source and a target, by the real images of the target.

    So StarGAN v2 judges each of its tasks, but that it compares with training images.
    """

    def __init__(self, opt: Namespace) -> None:
        self.opt = opt
        self.real = {name: domain_folder(opt.dataroot, opt.phase, name) for name in opt.domains}
        first = Judge(opt, self.real[opt.domain[0]])
        self.judges = {target: first.against(self.real[target]) for target in opt.domain}
        self.coats = Coats(opt.dataroot, opt.domains) if "coats" in opt.metrics else None

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Judge to_TARGET/SOURCE in a folder; `numbers` are the means over pairs."""
        pairs = {
            target: {
                source: self._pair(judge, folder, source, target)
                for source in self.opt.domains
                if source != target
            }
            for target, judge in self.judges.items()
        }
        targets = {target: mean_numbers(found.values()) for target, found in pairs.items()}
        count = sum(map(len, pairs.values()))
        compared = f"{folder}: each of {count} pairs against the images of its target, and their mean"
        numbers = mean_numbers([pair for found in pairs.values() for pair in found.values()])
        return {
            "numbers": numbers,
            "targets": targets,
            "pairs": pairs,
            "domains": self.opt.domains,
            "notes": {},
            "compared": compared,
        }

    def _pair(self, judge: Judge, folder: Path, source: str, target: str) -> dict[str, Any]:
        translations = folder / f"to_{target}" / source
        found = judge.evaluate(translations, self.real[source], folder / "real_A" / source)
        if self.coats:
            report = self.coats.report(source, target, translations)
            found["numbers"] |= {
                "coats-taken": 100 * report["taken"],
                "coats-background": report["background"],
            }
        return found

    def record(self) -> dict[str, Any]:
        """As of `Judge`, with the real images of each target."""
        records = {target: judge.record() for target, judge in self.judges.items()}
        real = {target: record["real"] for target, record in records.items()}
        return {**next(iter(records.values())), "real": real}


def mean_numbers(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number."""
    numbers = [found["numbers"] for found in results]
    return {name: float(np.mean([found[name] for found in numbers])) for name in numbers[0]}


def print_pairs(results: Mapping[str, Any]) -> None:
    """A table of sources and targets for each number."""
    pairs, targets = results["pairs"], results["targets"]
    sources = [name for name in results["domains"] if any(name in found for found in pairs.values())]
    for name in results["numbers"]:
        rows = [[name, *(f"to {target}" for target in targets)]]
        for source in sources:
            found = [of_target.get(source) for of_target in pairs.values()]
            rows.append([source, *(f"{pair['numbers'][name]:.4f}" if pair else "-" for pair in found)])
        rows.append(["mean", *(f"{numbers[name]:.4f}" for numbers in targets.values())])
        for first, *others in rows:
            print(f"  {first:22}" + "".join(f"{text:>14}" for text in others))


def print_numbers(results: Mapping[str, Any]) -> None:
    """What was compared, then one line for each number, with what it was computed from."""
    if "pairs" in results:
        print_pairs(results)
    print(results["compared"])
    for name, number in results["numbers"].items():
        print(f"  {name:22}{number:12.4f}  {results['notes'].get(name, '')}".rstrip())


def warn(message: str) -> None:
    """A warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)
