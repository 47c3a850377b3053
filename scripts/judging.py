"""The judge of translations: real images, networks and metrics of an evaluation, table and receipt."""

import copy
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
from util.metrics.pairs import DINO, check_pairs, load_dino, structure_distance
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
    """Compares folders of translations with one set of real images, which is processed once.

    real: the folder of these; None: what the options name.
    """

    def __init__(self, opt: Namespace, real: Path | None = None) -> None:
        device, download = get_device(opt.gpu_ids), opt.download_weights
        self.opt, self.networks, self.dino = opt, {}, None
        needed = {OF_FEATURES[metric][0] for metric in opt.metrics if metric in OF_FEATURES}
        if needed & {"inception", "inception-clean"}:
            path = networks.INCEPTION.find(opt.inception_weights, download)
            network = networks.load_inception(path, device)
            self.networks |= {"inception": network, "inception-clean": networks.clean(network)}
        if "classifier" in needed:
            path = networks.classifier_weights(opt.classifier).find(opt.classifier_weights, download)
            self.networks["classifier"] = networks.load_classifier(opt.classifier, path, device)
        if "structure" in opt.metrics:
            self.dino, self.dino_record = load_dino(DINO.find(opt.dino_weights, download), device)
        self.sources, real = None, opt.real or real
        if not real:
            self.sources, real = domain_folders(opt.dataroot, opt.phase, opt.direction)
        self.real = ImageSet(real)
        self.of_real: dict[str, Any] = {}  # features and classes by network, and "patches"

    def against(self, real: Path) -> "Judge":
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
            opt.swd_size = distances.fitting_size(min(map(min, fake.sizes | self.real.sizes)))
        if fake.sizes != self.real.sizes:
            warn(f"images of {folder} and {self.real.folder} differ in size, which affects every distance")
        if sources is not None and len(fake) < (images := len(ImageSet(sources))):
            found = f"{folder}: {len(fake)} translations of {images} images"
            warn(f"{found}; distances are larger with fewer images")
        numbers: dict[str, float] = {}
        notes: dict[str, str] = {}

        def add(name: str, number: float, note: str = "") -> None:
            numbers[name], notes[name] = float(number), note

        self._compare_features(fake, add)
        if "swd" in opt.metrics:
            self._compare_patches(fake, add)
        if "stripes" in opt.metrics:
            report = stripe_report(sources, folder, self.real.folder, Path(opt.dataroot, "masks"))
            means = ", ".join(f"{name}: {report[name]:.4f}" for name in ("real_A", "fake_B", "real_B"))
            add("stripes-gained", report["gained"], means)
            add("stripes-background", report["background"])
        if self.dino:
            originals = ImageSet(opt.inputs or inputs or folder.parent / "real_A")
            check_pairs(originals.paths, fake.paths)
            images = (side.images("structure") for side in (originals, fake))
            found = structure_distance(*images, self.dino)
            add("structure", 100 * np.mean(found), f"from {originals.folder}")
        compared = f"{folder}: {len(fake)} translations against {len(self.real)} images of {self.real.folder}"
        return {"numbers": numbers, "notes": notes, "fake": fake.record, "compared": compared}

    def _compare_features(self, fake: ImageSet, add: Callable) -> None:
        """Frechet and kernel distances, and the share of a class, by the features of each network."""
        opt, fewest = self.opt, min(len(fake), len(self.real))
        for kind, network in self.networks.items():
            asked = [how for metric, (of, how) in OF_FEATURES.items() if of == kind and metric in opt.metrics]
            if not asked:
                continue
            if fewest < 2 and asked != ["class"]:
                raise UserError(f"{fake.folder}, {self.real.folder}: a set of one image has no distribution")
            if kind not in self.of_real:
                self.of_real[kind] = networks.extract(network, self.real.images(network.name))
            ours, classes = networks.extract(network, fake.images(network.name))
            theirs, real_classes = self.of_real[kind]
            if "frechet" in asked:
                add(network.label("frechet"), distances.frechet_distance(ours, theirs))
            if "kernel" in asked:
                size = min(1000, fewest)
                mean, std = distances.kernel_inception_distance(ours, theirs, size, seed=opt.seed)
                add(network.label("kernel"), mean, f"standard deviation {std:.4f} over 100 subsets of {size}")
            if "class" in asked:
                share, real = (100 * (found == opt.class_index).mean() for found in (classes, real_classes))
                add(f"class-{opt.class_index}-{network.name}", share, f"%; of the real images {real:.2f} %")

    def _compare_patches(self, fake: ImageSet, add: Callable) -> None:
        """SWD of equally many images per side: of the larger set a random part, drawn by the seed."""
        size, seed, images = self.opt.swd_size, self.opt.seed, min(len(fake), len(self.real))
        if "patches" not in self.of_real:
            self.of_real["patches"] = distances.pyramid_patches(self.real.squares(size), size, seed)
        sides = []
        for patches in (distances.pyramid_patches(fake.squares(size), size, seed), self.of_real["patches"]):
            chosen = np.random.default_rng(seed).choice(len(patches[0]), images, replace=False)
            sides.append([level[np.sort(chosen)] for level in patches])
        by_level = distances.pyramid_distance(*sides, seed=seed)
        found = zip(distances.level_sizes(size), by_level, strict=True)
        levels = ", ".join(f"{side}: {distance:.2f}" for side, distance in found)
        add("SWD", np.mean(by_level), f"{images} images per side; levels {levels}")

    def record(self) -> dict[str, Any]:
        """For the receipt: the real images and the networks."""
        records = {network.name: network.record for network in self.networks.values()}
        records |= {"dino_vitbase8": self.dino_record} if self.dino else {}
        return {"real": self.real.record, "networks": records}


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
        pairs: dict[str, dict[str, Any]] = {target: {} for target in self.judges}
        for target, source in product(self.judges, self.opt.domains):
            if source != target:
                pairs[target][source] = self._pair(folder, source, target)
        every = [pair for found in pairs.values() for pair in found.values()]
        return {
            "numbers": mean_numbers(every),
            "targets": {target: mean_numbers(found.values()) for target, found in pairs.items()},
            "pairs": pairs,
            "domains": self.opt.domains,
            "notes": {},
            "compared": f"{folder}: each of {len(every)} pairs against its target's images, and their mean",
        }

    def _pair(self, folder: Path, source: str, target: str) -> dict[str, Any]:
        translations, inputs = folder / f"to_{target}" / source, folder / "real_A" / source
        found = self.judges[target].evaluate(translations, self.real[source], inputs)
        if self.coats:
            for name, number in self.coats.report(source, target, translations).items():
                found["numbers"][f"coats-{name}"] = 100 * number if name == "taken" else number
        return found

    def record(self) -> dict[str, Any]:
        """As of `Judge`, with the real images of each target."""
        real = {target: judge.real.record for target, judge in self.judges.items()}
        return {**next(iter(self.judges.values())).record(), "real": real}


def mean_numbers(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number."""
    numbers = [found["numbers"] for found in results]
    return {name: float(np.mean([found[name] for found in numbers])) for name in numbers[0]}


def print_numbers(results: Mapping[str, Any]) -> None:
    """What was compared, then one line for each number, with what it was computed from.

    Of many domains, a table of sources and targets for each number before them.
    """
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
    hardware = {
        "platform": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
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
    """A warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)
