"""The folders of a data set: where they are, what is wrong with the images, whether they are as before."""

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.transforms import MIN_SIDE
from util.errors import UserError
from util.image_files import ImageError, read_image, to_rgb


def domain_folder(dataroot: str | Path, phase: str, domain: str = "") -> Path:
    """PHASEDOMAIN or PHASE/DOMAIN, without a domain PHASE; for test also val. `UserError` without one."""
    root, phases = Path(dataroot), ("test", "val") if phase == "test" else (phase,)
    names = [name for p in phases for name in ((f"{p}{domain}", f"{p}/{domain}") if domain else (p,))]
    for name in names:
        if (root / name).is_dir():
            return root / name
    there = sorted(path.name for path in root.iterdir() if path.is_dir())[:12] if root.is_dir() else None
    found = "does not exist" if there is None else f"has {', '.join(map(repr, there)) or 'no folders'}"
    found = f"no folder {' or '.join(names)} in the data set {str(dataroot)!r}, which {found}"
    ways = "bash datasets/download_qsattn_dataset.sh horse2zebra, or python datasets/make_stripes.py"
    raise UserError(f"{found}. Check --dataroot, --phase and --domains, or get a set: {ways}")


def domain_folders(dataroot: str | Path, phase: str, direction: str = "AtoB") -> tuple[Path, Path]:
    """Source and target, trainA and trainB, or for BtoA exchanged; the target may not exist."""
    source, target = direction.split("to")
    folder = domain_folder(dataroot, phase, source)
    return folder, folder.with_name(folder.name.removesuffix(source) + target)


def find_domains(dataroot: str | Path, phase: str) -> list[str]:
    """The sorted names of a set's domains: folders of PHASE/, else what follows PHASE in folders' names."""
    folders = [path.name for path in Path(dataroot).glob("*") if path.is_dir()]
    found = [path.name for path in Path(dataroot, phase).glob("*") if path.is_dir()]
    found = sorted(found or [name.removeprefix(phase) for name in folders if name.startswith(phase)])
    if len(found) < 2 or any("," in name for name in found):
        names = f"{str(dataroot)!r} has {', '.join(map(repr, found)) or 'no folders'} for the phase {phase}"
        layout = f"{phase}/cat, {phase}/dog or {phase}A, {phase}B, no commas"
        raise UserError(f"{names}, but at least two domains are needed, as {layout}, or named by --domains")
    return found


NEAR_CONSTANT = 2.0  # of 255: greatest standard deviation of a colour channel over the image
SHOWN = 5  # names in a line of a report
SAMPLED = 50  # images that `quick_check` decodes


class Finding(NamedTuple):
    """What was found of one file."""

    folder: str
    path: str
    problem: str  # "" where there is none
    content: bytes = b""  # a hash, the same for the same pixels in any encoding
    error: ImageError | None = None  # of a file that cannot be used


def look_at(folder: str, path: str, grey: tuple[float, float] | None, min_side: int) -> Finding:
    try:
        image = read_image(path)
    except ImageError as error:
        return Finding(folder, path, f"unusable ({error.found})", error=error)
    image = to_rgb(image, grey)
    content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest()
    problem = ""
    if min(image.size) < min_side:
        problem = f"shorter side below {min_side} pixels"
    elif np.asarray(image).std((0, 1), dtype=np.float32).max() < NEAR_CONSTANT:
        problem = "of nearly one colour"
    return Finding(folder, path, problem, content)


def inspect(images: Iterable[tuple[str, str, tuple[float, float] | None]], min_side: int) -> list[Finding]:
    """Look at images: the name of the folder, the path, black and white of grey of more than 8 bits."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda image: look_at(*image, min_side), images))


def problems(findings: Sequence[Finding]) -> list[str]:
    """What is wrong with single files, one line for each folder and problem, naming files."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for finding in findings:
        if finding.problem:
            found[finding.folder, finding.problem].append(finding.path)
    return [f"{folder}: {len(paths)} {what}: {names(paths)}" for (folder, what), paths in found.items()]


def names(paths: Sequence[str]) -> str:
    """The first few of `paths`, in a line."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(repr, paths[:SHOWN])) + more


def quick_check(dataset) -> list[str]:
    """Problems in a sample of a `BaseDataset`; an unusable image raises, unless such are skipped."""
    images = [
        (f"domain {name}", path, store.grey) for name, store in dataset.stores.items() for path in store.paths
    ]
    sample = random.Random(0).sample(images, min(len(images), SAMPLED))
    least = dataset.preprocess.crop_size if dataset.preprocess.mode == "crop" else MIN_SIDE
    findings = inspect(sample, least)
    for finding in findings:
        if finding.error and dataset.on_bad_image == "stop":
            raise finding.error
    return problems(findings)


def fingerprint(files: Mapping[str, Sequence[str]], dataroot: str | Path) -> dict[str, dict[str, object]]:
    """The files of each domain: their count, and a hash of their names under `dataroot`."""
    found = {}
    for domain, paths in files.items():
        listed = os.fsencode("\0".join(os.path.relpath(path, dataroot) for path in paths))
        digest = hashlib.blake2b(listed, digest_size=16).hexdigest()
        found[domain] = {"images": len(paths), "names": digest}
    return found


def changes(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """One line per domain whose files are not those of the fingerprint `before`."""
    lines = []
    for domain in sorted({*before, *now}):
        if before.get(domain) != now.get(domain):
            there, here = (files.get(domain, {}).get("images", 0) for files in (before, now))
            lines.append(f"domain {domain}: {there} images there, {here} now{', renamed' * (there == here)}")
    return lines
