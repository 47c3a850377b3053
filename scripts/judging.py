"""The judge of translations: real images, networks and metrics of an evaluation, table and receipt."""

import hashlib
import json
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.folders import domain_folder, domain_folders
from util.arguments import integer
from util.device import get_device
from util.errors import UserError
from util.image_files import grey_range, list_images, open_rgb
from util.metrics import distances, networks
from util.metrics.pairs import check_pairs, structure_distance
from util.metrics.stripes import Coats, stripe_report
from util.run.saved_options import option_values

PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "pillow", "pytorch-fid", "lpips")
PROTOCOL = "qs-attn evaluation 2 (docs/evaluation.md)"
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
    classifier = f"of torchvision, or {networks.LITE}, for fd, kd and class"
    add("--classifier", "squeezenet1_1", classifier)
    add("--classifier_weights", None, "its weights file", type=Path, shown=cached)
    add("--class_index", None, "a class of ImageNet, from 0 (zebra: 340)", type=integer(0, 999))
    add("--dino_weights", None, "the official file of DINO's ViT-B/8, for structure", type=Path, shown=cached)
    add("--download_weights", False, "fetch files that the metrics need (unnamed: those of FID) to there")


class ImageSet:
    """The images of a folder in the order of their names, decoded to RGB again in each pass."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.paths = Path(folder), list_images(folder)
        self.grey = grey_range(self.paths)  # black and white of grey images of more than 8 bits

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, what: str) -> Iterator[Image.Image]:
        """Every image in RGB, in order, under a progress bar labelled `what`."""
        for path in tqdm(self.paths, f"{what}: {self.folder.name}", unit="image", leave=False):
            yield open_rgb(path, self.grey)

    def squares(self, size: int) -> Iterator[np.ndarray]:
        """Every image as uint8 (3, size, size), scaled bicubically if it has another size."""
        for image in self.images("patches"):
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            yield np.asarray(image).transpose(2, 0, 1)  # (3, size, size)

    @cached_property
    def sizes(self) -> set[tuple[int, int]]:
        """All (width, height) in pixels."""
        return {open_rgb(path).size for path in self.paths}

    @cached_property
    def record(self) -> dict[str, object]:
        """For the receipt: the folder, how many images, and a checksum of all names and bytes."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path.name) + b"\0" + path.read_bytes())
        return {"folder": str(self.folder), "count": len(self), "sha256": digest.hexdigest()}


class Judge:
    """Compares folders of translations with real images, each set of which is processed once.

    Of a run with many domains it judges each ordered pair, a source and a target, by the real images of the
    target. So StarGAN v2 judges each of its tasks, but that it compares with training images.
    """

    def __init__(self, opt: Namespace) -> None:
        device, download = get_device(opt.gpu_ids), opt.download_weights
        self.opt, self.networks, self.coats = opt, {}, None
        needed = {OF_FEATURES[metric][0] for metric in opt.metrics if metric in OF_FEATURES}
        if needed & {"inception", "inception-clean"}:
            path = networks.INCEPTION.find(opt.inception_weights, download)
            network = networks.load_inception(path, device)
            self.networks |= {"inception": network, "inception-clean": networks.clean(network)}
        if "classifier" in needed:
            path = networks.classifier_weights(opt.classifier).find(opt.classifier_weights, download)
            self.networks["classifier"] = networks.load_classifier(opt.classifier, path, device)
        if "structure" in opt.metrics:
            path = networks.DINO.find(opt.dino_weights, download)
            self.networks["structure"] = networks.load_dino(path, device)
        self.sources, real = None, opt.real
        self.domains: dict[str, Path] = {}  # of many: the folder of each
        if not real and opt.domains:
            self.domains = {name: domain_folder(opt.dataroot, opt.phase, name) for name in opt.domains}
            self.coats = Coats(opt.dataroot, opt.domains) if "coats" in opt.metrics else None
        elif not real:
            self.sources, real = domain_folders(opt.dataroot, opt.phase, opt.direction)
        targets = {name: self.domains[name] for name in opt.domain} if self.domains else {"": real}
        self.real = {target: ImageSet(folder) for target, folder in targets.items()}
        self.of_real: dict[tuple[Path, str], Any] = {}  # by folder: what networks say, patches

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Numbers, notes and record of a folder of translations; of many, means over to_TARGET/SOURCE."""
        if not self.domains:
            return self._compare(folder, self.real[""], self.sources, folder.parent / "real_A")
        pairs: dict[str, dict[str, Any]] = {target: {} for target in self.real}
        for (target, real), source in product(self.real.items(), self.domains):
            if source != target:
                translations, inputs = folder / f"to_{target}" / source, folder / "real_A" / source
                found = self._compare(translations, real, self.domains[source], inputs)
                if self.coats:
                    for name, number in self.coats.report(source, target, translations).items():
                        found["numbers"][f"coats-{name}"] = 100 * number if name == "taken" else number
                pairs[target][source] = found
        every = [pair for found in pairs.values() for pair in found.values()]
        return {
            "numbers": mean_numbers(every),
            "targets": {target: mean_numbers(found.values()) for target, found in pairs.items()},
            "pairs": pairs,
            "domains": self.opt.domains,
            "notes": {},
            "compared": f"{folder}: each of {len(every)} pairs against its target's images, and their mean",
        }

    def _compare(self, folder: Path, real: ImageSet, sources: Path | None, inputs: Path) -> dict[str, Any]:
        """A folder with real images; `sources`, what there is to translate, and `inputs`, what was."""
        opt, fake = self.opt, ImageSet(folder)
        if opt.swd_size is None:  # one size for a whole sweep: that of its first set
            opt.swd_size = distances.fitting_size(min(map(min, fake.sizes | real.sizes)))
        if fake.sizes != real.sizes:
            warn(f"images of {folder} and {real.folder} differ in size, which affects every distance")
        if sources is not None and len(fake) < (images := len(ImageSet(sources))):
            found = f"{folder}: {len(fake)} translations of {images} images"
            warn(f"{found}; distances are larger with fewer images")
        numbers: dict[str, float] = {}
        notes: dict[str, str] = {}

        def add(name: str, number: float, note: str = "") -> None:
            numbers[name], notes[name] = float(number), note

        self._compare_features(fake, real, add)
        if "swd" in opt.metrics:
            self._compare_patches(fake, real, add)
        if "stripes" in opt.metrics:
            report = stripe_report(sources, folder, real.folder, Path(opt.dataroot, "masks"))
            means = ", ".join(f"{name}: {report[name]:.4f}" for name in ("real_A", "fake_B", "real_B"))
            add("stripes-gained", report["gained"], means)
            add("stripes-background", report["background"])
        if "structure" in opt.metrics:
            originals = ImageSet(opt.inputs or inputs)
            check_pairs(originals.paths, fake.paths)
            images = (side.images("structure") for side in (originals, fake))
            found = structure_distance(*images, self.networks["structure"])
            add("structure", 100 * np.mean(found), f"from {originals.folder}")
        compared = f"{folder}: {len(fake)} translations against {len(real)} images of {real.folder}"
        return {"numbers": numbers, "notes": notes, "fake": fake.record, "compared": compared}

    def _compare_features(self, fake: ImageSet, real: ImageSet, add: Callable) -> None:
        """Frechet and kernel distances, and the share of a class, by the features of each network."""
        opt, fewest = self.opt, min(len(fake), len(real))
        for kind, network in self.networks.items():
            asked = [how for metric, (of, how) in OF_FEATURES.items() if of == kind and metric in opt.metrics]
            if not asked:
                continue
            if fewest < 2 and asked != ["class"]:
                raise UserError(f"{fake.folder}, {real.folder}: a set of one image has no distribution")
            if (of_real := (real.folder, kind)) not in self.of_real:
                self.of_real[of_real] = networks.extract(network, real.images(network.name))
            ours, classes = networks.extract(network, fake.images(network.name))
            theirs, real_classes = self.of_real[of_real]
            if "frechet" in asked:
                add(network.label("frechet"), distances.frechet_distance(ours, theirs))
            if "kernel" in asked:
                size = min(1000, fewest)
                mean, std = distances.kernel_inception_distance(ours, theirs, size, seed=opt.seed)
                add(network.label("kernel"), mean, f"standard deviation {std:.4f} over 100 subsets of {size}")
            if "class" in asked:
                share, of = (100 * (found == opt.class_index).mean() for found in (classes, real_classes))
                add(f"class-{opt.class_index}-{network.name}", share, f"%; of the real images {of:.2f} %")

    def _compare_patches(self, fake: ImageSet, real: ImageSet, add: Callable) -> None:
        """SWD of equally many images per side: of the larger set a random part, drawn by the seed."""
        size, seed, images = self.opt.swd_size, self.opt.seed, min(len(fake), len(real))
        if (of_real := (real.folder, "patches")) not in self.of_real:
            self.of_real[of_real] = distances.pyramid_patches(real.squares(size), size, seed)
        sides = []
        for patches in (distances.pyramid_patches(fake.squares(size), size, seed), self.of_real[of_real]):
            chosen = np.random.default_rng(seed).choice(len(patches[0]), images, replace=False)
            sides.append([level[np.sort(chosen)] for level in patches])
        by_level = distances.pyramid_distance(*sides, seed=seed)
        found = zip(distances.level_sizes(size), by_level, strict=True)
        levels = ", ".join(f"{side}: {distance:.2f}" for side, distance in found)
        add("SWD", np.mean(by_level), f"{images} images per side; levels {levels}")

    def record(self) -> dict[str, Any]:
        """For the receipt: the real images and the networks."""
        records = {network.name: network.record for network in self.networks.values()}
        real = {target: images.record for target, images in self.real.items()}
        return {"networks": records, "real": real if self.domains else real[""]}


def mean_numbers(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number."""
    numbers = [found["numbers"] for found in results]
    return {name: float(np.mean([found[name] for found in numbers])) for name in numbers[0]}


def print_numbers(results: Mapping[str, Any]) -> None:
    """What was compared, then each number; of many domains first a table of sources and targets for each."""
    pairs = results.get("pairs", {})
    for name in results["numbers"] if pairs else ():
        found = {(s, t): f"{pair['numbers'][name]:.4f}" for t, of in pairs.items() for s, pair in of.items()}
        rows = [[s, *(found.get((s, t), "-") for t in pairs)] for s in results["domains"]]
        rows.append(["mean", *(f"{numbers[name]:.4f}" for numbers in results["targets"].values())])
        print(markdown_table([name, *(f"to {target}" for target in pairs)], rows), "\n")
    print(results["compared"])
    for name, number in results["numbers"].items():
        print(f"  {name:22}{number:12.4f}  {results['notes'].get(name, '')}".rstrip())


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, without a line end after its last row."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def write_receipt(path: Path, opt: Namespace, results: Mapping[str, Any]) -> None:
    """Write all that is needed to reproduce `results` (numbers, image sets, networks) as one JSON file."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = versions_and_hardware(get_device(opt.gpu_ids))
    receipt = {"protocol": PROTOCOL, "date": date, **results, "options": option_values(opt), **machine}
    path.write_text(json.dumps(receipt, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")


def versions_and_hardware(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, to keep beside every number: {"versions", "device", "hardware"}."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    hardware = {"platform": platform.platform(), "processor": processor}
    hardware |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        hardware |= {"gpu": gpu.name, "gpu_memory_GB": round(gpu.total_memory / 1e9, 1)}
        hardware |= {"multiprocessors": gpu.multi_processor_count, "capability": f"{gpu.major}.{gpu.minor}"}
        hardware |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"versions": versions, "device": str(device), "hardware": hardware}


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
