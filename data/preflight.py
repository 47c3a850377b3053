"""What is wrong with a data set, reported before training rather than during it.

That is: unreadable files, images that are too small or nearly of one colour, and exact copies, which distort
a metric, above all between train and test.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.folders import domain_folder, domain_folders
from data.transforms import MIN_SIDE
from util.image_files import ImageError, grey_range, list_images, parse_grey_range, read_image, to_rgb

NEAR_CONSTANT = 2.0  # of 255: greatest standard deviation of a colour channel over the image
SHOWN = 5  # names in a line of the report

Grey = tuple[float, float] | None


class Finding(NamedTuple):
    """One file: either `error`, or its size in pixels, mode on disk, content hash and contrast (0..255)."""

    folder: str
    path: str
    error: ImageError | None = None
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    content: bytes = b""
    contrast: float = 0.0


def look_at(folder: str, path: str | os.PathLike, grey: Grey = None) -> Finding:
    """Decode one file and describe it. Files with the same pixels have the same hash in any encoding."""
    try:
        image = read_image(path)
    except ImageError as error:
        return Finding(folder, str(path), error)
    mode, image = image.mode, to_rgb(image, grey)
    content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest()
    contrast = np.asarray(image).std((0, 1), dtype=np.float32).max()
    return Finding(folder, str(path), None, image.size, mode, content, float(contrast))


def inspect(
    folders: Mapping[str, Sequence[Path]], greys: Mapping[str, Grey], seconds: float = math.inf
) -> list[Finding]:
    """Look at the images of each named folder, or at a fair sample of as many as `seconds` allow."""
    images = [(folder, path) for folder, paths in folders.items() for path in paths]
    random.Random(0).shuffle(images)
    end = time.monotonic() + seconds

    def look(image: tuple[str, Path]) -> Finding | None:
        return look_at(*image, greys[image[0]]) if time.monotonic() < end else None

    with ThreadPoolExecutor() as pool:
        findings = [finding for finding in pool.map(look, images) if finding]
    order = {folder: place for place, folder in enumerate(folders)}
    return sorted(findings, key=lambda finding: (order[finding.folder], os.fsencode(finding.path)))


def problems(findings: Sequence[Finding], min_side: int = MIN_SIDE) -> list[str]:
    """What is wrong with single files, one line for each folder and problem, naming files."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for finding in findings:
        what = None
        if finding.error:
            what = f"unusable ({finding.error.found})"
        elif min(finding.size) < min_side:
            what = f"shorter side below {min_side} pixels"
        elif finding.contrast < NEAR_CONSTANT:
            what = "of nearly one colour"
        if what:
            found[finding.folder, what].append(finding.path)
    return [f"{folder}: {len(paths)} {what}: {_names(paths)}" for (folder, what), paths in found.items()]


def copies(findings: Sequence[Finding]) -> list[str]:
    """The pictures that occur more than once, one line each."""
    same: dict[bytes, list[Finding]] = defaultdict(list)
    for finding in findings:
        if not finding.error:
            same[finding.content].append(finding)
    lines = []
    for group in same.values():
        if len(group) > 1:
            folders = " and ".join(dict.fromkeys(finding.folder for finding in group))
            paths = [finding.path for finding in group]
            lines.append(f"{folders}: the same picture {len(paths)} times: {_names(paths)}")
    return lines


def summary(folder: str, findings: Sequence[Finding]) -> str:
    """The images of a folder by size and mode, in one line."""
    readable = [finding for finding in findings if finding.folder == folder and not finding.error]
    counts = Counter(f"{finding.size[0]} x {finding.size[1]} {finding.mode}" for finding in readable)
    kinds = ", ".join(f"{count} of {kind}" for kind, count in counts.most_common(SHOWN))
    more = f" and {len(counts) - SHOWN} other sizes" if len(counts) > SHOWN else ""
    return f"{folder}: {len(readable)} images ({kinds}{more})"


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
        places = [domain_folder(opt.dataroot, opt.phase)]
    folders = {place.name: list_images(place, opt.max_dataset_size) for place in places}
    grey = parse_grey_range(opt.grey_range)
    findings = inspect(folders, {name: grey or grey_range(paths) for name, paths in folders.items()}, seconds)
    for finding in findings:
        if finding.error and opt.on_bad_image == "stop":
            raise finding.error
    return problems(findings, opt.crop_size if opt.preprocess == "crop" else MIN_SIDE)


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(repr, paths[:SHOWN])) + more
