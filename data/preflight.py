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

from data.datasets import domain_folders, paired_folder
from data.transforms import MIN_SIDE
from util.image_files import ImageError, decode, list_images

NEAR_CONSTANT = 2.0  # of 255: greatest standard deviation of a colour channel over the image
SHOWN = 5  # names in a line of the report


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
class FolderReport:
    """One folder: the number of its images, and findings on those decoded (all, unless time ran out)."""

    name: str
    count: int
    findings: list[Finding] = field(default_factory=list)
    min_side: int = MIN_SIDE

    @property
    def readable(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.error]

    def problems(self) -> dict[str, list[str]]:
        """What is wrong -> the files."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for finding in self.findings:
            if finding.error:
                reasons[f"unusable ({finding.error})"].append(finding.path)
        small = [finding.path for finding in self.readable if min(finding.size) < self.min_side]
        constant = [finding.path for finding in self.readable if finding.contrast < NEAR_CONSTANT]
        kinds = {f"shorter side below {self.min_side} pixels": small, "of nearly one colour": constant}
        return reasons | {kind: paths for kind, paths in kinds.items() if paths}


@dataclass
class Report:
    """Folders, and files with the same pixels."""

    folders: list[FolderReport]
    copies: list[dict[str, list[str]]]  # folder -> files, for each picture that occurs more than once

    def problems(self) -> list[str]:
        """One line each, naming files."""
        lines = [
            f"{folder.name}: {len(paths)} {what}: {_names(paths)}"
            for folder in self.folders
            for what, paths in folder.problems().items()
        ]
        for places in self.copies:
            paths = [path for files in places.values() for path in files]
            lines.append(f"{' and '.join(places)}: the same picture {len(paths)} times: {_names(paths)}")
        return lines

    def table(self) -> str:
        """Counts, sizes and modes by folder, as text."""
        rows = [("folder", "images", "decoded", "unreadable", "width x height", "modes")]
        for folder in self.folders:
            modes = Counter(finding.mode for finding in folder.readable)
            bad = len(folder.findings) - len(folder.readable)
            counts = (str(folder.count), str(len(folder.readable)), str(bad))
            shown_modes = ", ".join(f"{mode} {count}" for mode, count in modes.most_common())
            rows.append((folder.name, *counts, _sizes(folder.readable), shown_modes))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def as_dict(self) -> dict:
        """The report as plain data, for JSON."""
        folders = {
            folder.name: {
                "images": folder.count,
                "decoded": len(folder.readable),
                "sizes": _counted(f"{w}x{h}" for w, h in (finding.size for finding in folder.readable)),
                "modes": _counted(finding.mode for finding in folder.readable),
                "problems": folder.problems(),
            }
            for folder in self.folders
        }
        return {"folders": folders, "copies": self.copies, "problems": self.problems()}


def look_at(path: str | os.PathLike) -> Finding:
    """Decode one file and describe it. Files with the same pixels have the same hash in any encoding."""
    name = os.fspath(path)
    try:
        image, mode = decode(path)
    except ImageError as error:
        return Finding(name, error=error.found)
    content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest()
    contrast = np.asarray(image).std((0, 1), dtype=np.float32).max()
    return Finding(name, "", image.size, mode, content, float(contrast))


def inspect(
    folders: Mapping[str, Sequence[Path]],
    min_side: int = MIN_SIDE,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Look at the images of each named folder, or at as many as `seconds` on `clock` allow, evenly spread."""
    end = clock() + seconds
    reports = {name: FolderReport(name, len(paths), [], min_side) for name, paths in folders.items()}
    same: dict[bytes, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for name, batch in _batches(folders, 4 * threads):
            if clock() > end:
                break
            reports[name].findings.extend(pool.map(look_at, batch))
    for report in reports.values():
        report.findings.sort(key=lambda finding: os.fsencode(finding.path))
        for finding in report.readable:
            same[finding.content][report.name].append(finding.path)
    copies = [dict(places) for places in same.values() if sum(map(len, places.values())) > 1]
    return Report(list(reports.values()), copies)


def folders_under(dataroot: str | os.PathLike) -> dict[str, list[Path]]:
    """The image folders of a data set: trainA ... valB, or train, val, test of pairs, else `dataroot`."""
    names = [phase + domain for phase in ("train", "val", "test") for domain in ("A", "B", "")]
    there = [name for name in names if Path(dataroot, name).is_dir()]
    return {name: list_images(Path(dataroot, name)) for name in there} or {".": list_images(dataroot)}


def quick_check(opt: Namespace, seconds: float = 1.0) -> list[str]:
    """Problems in a sample of the images that these options train on, one line each; takes about `seconds`.

    Reads dataroot, phase, direction, dataset_mode, max_dataset_size, preprocess, crop_size and on_bad_image.
    Raises `UserError` if the set is missing, and unless bad images are skipped, for a file that cannot be
    used.
    """
    if opt.dataset_mode == "unaligned":
        places = domain_folders(opt.dataroot, opt.phase, opt.direction)
    else:
        places = (paired_folder(opt.dataroot, opt.phase),)
    folders = {place.name: list_images(place, opt.max_dataset_size) for place in places}
    report = inspect(folders, opt.crop_size if opt.preprocess == "crop" else MIN_SIDE, seconds)
    for folder in report.folders:
        for finding in folder.findings:
            if finding.error and opt.on_bad_image == "stop":
                raise ImageError(finding.path, finding.error)
    return Report(report.folders, []).problems()  # without copies, of which a sample finds only some


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
    sizes = Counter(finding.size for finding in findings)
    if not sizes:
        return "-"
    if len(sizes) <= 2:
        return ", ".join(f"{width} x {height}" for width, height in sizes)
    (low_w, high_w), (low_h, high_h) = ((min(side), max(side)) for side in zip(*sizes, strict=True))
    return f"{low_w}..{high_w} x {low_h}..{high_h}"


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
