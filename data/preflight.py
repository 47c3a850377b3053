"""What is wrong with a data set, reported before training rather than during it.

`inspect` decodes the images of some folders and reports counts, sizes, modes, and problems: unreadable files,
images that are too small, nearly of one colour, or exact copies of each other (which distort a metric, above
all between train and test). `quick_check` inspects as many images as one second allows, before train.py
starts.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.folders import domain_folder, domain_folders, paired_folder
from data.transforms import MIN_SIDE
from util.image_files import (
    ImageError,
    describe_grey_range,
    grey_range,
    list_images,
    parse_grey_range,
    read_image,
    to_rgb,
)

NEAR_CONSTANT = 2.0  # of 255: greatest standard deviation of a colour channel over the image
SHOWN = 5  # names in a line of the report

Grey = tuple[float, float] | None


@dataclass(frozen=True)
class Finding:
    """One file: either `error`, or its size in pixels, mode on disk, content hash and contrast (0..255)."""

    path: str
    error: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    content: bytes = b""
    contrast: float = 0.0


@dataclass
class Report:
    """What was found of the images of each folder: of all, unless time ran out."""

    counts: dict[str, int]  # images by folder
    min_side: int = MIN_SIDE
    greys: dict[str, Grey] = field(default_factory=dict)  # black and white of grey of more than 8 bits
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    copies: list[dict[str, list[str]]] = field(default_factory=list)  # folder -> files with the same pixels

    def folder_problems(self, folder: str) -> dict[str, list[str]]:
        """What is wrong with files of a folder -> their paths."""
        problems: dict[str, list[str]] = defaultdict(list)
        for finding in self.findings[folder]:
            if finding.error:
                problems[f"unusable ({finding.error})"].append(finding.path)
            elif min(finding.size) < self.min_side:
                problems[f"shorter side below {self.min_side} pixels"].append(finding.path)
            elif finding.contrast < NEAR_CONSTANT:
                problems["of nearly one colour"].append(finding.path)
        return problems

    def problems(self) -> list[str]:
        """One line each, naming files."""
        lines = [
            f"{folder}: {len(paths)} {what}: {_names(paths)}"
            for folder in self.counts
            for what, paths in self.folder_problems(folder).items()
        ]
        for places in self.copies:
            paths = [path for files in places.values() for path in files]
            lines.append(f"{' and '.join(places)}: the same picture {len(paths)} times: {_names(paths)}")
        return lines

    def table(self) -> str:
        """Counts, sizes and modes by folder, as text, and what is read in a way that may surprise."""
        rows = [("folder", "images", "decoded", "unreadable", "width x height", "modes")]
        for folder, count in self.counts.items():
            readable = self.readable(folder)
            bad = len(self.findings[folder]) - len(readable)
            modes = ", ".join(f"{mode} {n}" for mode, n in Counter(f.mode for f in readable).most_common())
            rows.append((folder, str(count), str(len(readable)), str(bad), _sizes(readable), modes))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"{folder}: {describe_grey_range(grey)}" for folder, grey in self.greys.items() if grey]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """The report as plain data, for JSON."""
        folders = {}
        for folder, count in self.counts.items():
            readable = self.readable(folder)
            folders[folder] = {
                "images": count,
                "decoded": len(readable),
                "sizes": Counter(f"{found.size[0]}x{found.size[1]}" for found in readable),
                "modes": Counter(found.mode for found in readable),
                "grey_range": self.greys[folder],
                "problems": self.folder_problems(folder),
            }
        return {"folders": folders, "copies": self.copies, "problems": self.problems()}

    def readable(self, folder: str) -> list[Finding]:
        return [finding for finding in self.findings[folder] if not finding.error]


def look_at(path: str | os.PathLike, grey: Grey = None) -> Finding:
    """Decode one file and describe it. Files with the same pixels have the same hash in any encoding."""
    name = os.fspath(path)
    try:
        image = read_image(path)
    except ImageError as error:
        return Finding(name, error=error.found)
    mode, image = image.mode, to_rgb(image, grey)
    content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest()
    contrast = np.asarray(image).std((0, 1), dtype=np.float32).max()
    return Finding(name, "", image.size, mode, content, float(contrast))


def inspect(
    folders: Mapping[str, Sequence[Path]],
    min_side: int = MIN_SIDE,
    grey: Grey = None,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Look at the images of each named folder, or at as many as `seconds` on `clock` allow, evenly spread.

    grey: black and white of grey images of more than 8 bits; None: each folder's `grey_range`.
    """
    end = clock() + seconds
    report = Report({name: len(paths) for name, paths in folders.items()}, min_side)
    report.greys = {name: grey or grey_range(paths) for name, paths in folders.items()}
    report.findings = {name: [] for name in folders}
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for name, batch in _batches(folders, 4 * threads):
            if clock() > end:
                break
            report.findings[name] += pool.map(look_at, batch, [report.greys[name]] * len(batch))
    same: dict[bytes, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, findings in report.findings.items():
        findings.sort(key=lambda finding: os.fsencode(finding.path))
        for finding in report.readable(name):
            same[finding.content][name].append(finding.path)
    report.copies = [dict(places) for places in same.values() if sum(map(len, places.values())) > 1]
    return report


def folders_under(dataroot: str | os.PathLike) -> dict[str, list[Path]]:
    """The image folders of a data set: trainA ... valB, train ... or the folders in them, else `dataroot`."""
    there = []
    for phase in ("train", "val", "test"):
        inner = sorted(path.name for path in Path(dataroot, phase).glob("*") if path.is_dir())
        beside = sorted(path.name for path in Path(dataroot).glob(f"{phase}?*") if path.is_dir())
        there += beside + ([f"{phase}/{name}" for name in inner] or [phase])
    there = [name for name in there if Path(dataroot, name).is_dir()]
    return {name: list_images(Path(dataroot, name)) for name in there} or {".": list_images(dataroot)}


def quick_check(opt: Namespace, seconds: float = 1.0) -> list[str]:
    """Problems in a sample of the images that these options train on, one line each; takes about `seconds`.

    Raises `UserError` if the set is missing, and unless bad images are skipped, for a file that cannot be
    used.
    """
    if opt.dataset_mode == "multi":
        places = [domain_folder(opt.dataroot, opt.phase, domain) for domain in opt.domains]
    elif opt.dataset_mode == "unaligned":
        places = domain_folders(opt.dataroot, opt.phase, opt.direction)
    else:
        places = (paired_folder(opt.dataroot, opt.phase),)
    folders = {place.name: list_images(place, opt.max_dataset_size) for place in places}
    min_side = opt.crop_size if opt.preprocess == "crop" else MIN_SIDE
    report = inspect(folders, min_side, parse_grey_range(opt.grey_range), seconds)
    for finding in sum(report.findings.values(), []):
        if finding.error and opt.on_bad_image == "stop":
            raise ImageError(finding.path, finding.error)
    report.copies = []  # of which a sample finds only some
    return report.problems()


def _batches(folders: Mapping[str, Sequence[Path]], size: int) -> Iterator[tuple[str, Sequence[Path]]]:
    """All images, in turns of about `size` per folder, evenly strided: any beginning is a fair sample."""
    strides = {name: -(-len(paths) // size) for name, paths in folders.items()}
    for start in range(max(strides.values())):
        for name, paths in folders.items():
            if start < strides[name]:
                yield name, paths[start :: strides[name]]


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(repr, paths[:SHOWN])) + more


def _sizes(findings: Sequence[Finding]) -> str:
    sizes = {finding.size for finding in findings}
    if len(sizes) <= 1:
        return ", ".join(f"{width} x {height}" for width, height in sizes) or "-"
    (low_w, high_w), (low_h, high_h) = ((min(side), max(side)) for side in zip(*sizes, strict=True))
    return f"{low_w}..{high_w} x {low_h}..{high_h}"
