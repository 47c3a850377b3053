"""Where the images of a data set are under --dataroot, and whether a resumed training finds the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from util.errors import UserError

HOW_TO_GET_ONE = """To get one:
  download one      bash datasets/download_qsattn_dataset.sh horse2zebra
  or draw a small   python datasets/make_stripes.py
                    and give --dataroot ./datasets/stripes"""


def domain_folder(dataroot: str | Path, phase: str, domain: str = "") -> Path:
    """The folder of a domain, PHASEDOMAIN or PHASE/DOMAIN; without one that of pairs, PHASE. test: else val.

    Raises `UserError` if there is none.
    """
    phases = ("test", "val") if phase == "test" else (phase,)
    places = ("{}{}", "{}/{}") if domain else ("{}",)
    names = [place.format(phase, domain) for phase in phases for place in places]
    for name in names:
        if Path(dataroot, name).is_dir():
            return Path(dataroot, name)
    if not Path(dataroot).is_dir():
        raise UserError(f"no data set at {str(dataroot)!r}: there is no such folder. {HOW_TO_GET_ONE}")
    there = sorted(path.name for path in Path(dataroot).iterdir() if path.is_dir())[:12]
    raise UserError(
        f"no folder {' or '.join(names)} in the data set {str(dataroot)!r}, which has "
        f"{', '.join(map(repr, there)) or 'no folders'}. Check --dataroot, --phase, --dataset_mode and "
        f"--domains. {HOW_TO_GET_ONE}"
    )


def domain_folders(dataroot: str | Path, phase: str, direction: str = "AtoB") -> tuple[Path, Path]:
    """The folders of source and target of an unpaired set: trainA, trainB; direction "BtoA" exchanges them.

    Raises `UserError` if the source does not exist; the target may not exist.
    """
    source, target = direction.split("to")
    folder = domain_folder(dataroot, phase, source)
    return folder, folder.with_name(folder.name.removesuffix(source) + target)


def find_domains(dataroot: str | Path, phase: str) -> list[str]:
    """The names of a set's domains, sorted: the folders of PHASE/, else what follows PHASE in folders' names.

    Raises `UserError` if there are fewer than two, or a name holds a comma.
    """
    folders = [path.name for path in Path(dataroot).glob("*") if path.is_dir()]
    found = [path.name for path in Path(dataroot, phase).glob("*") if path.is_dir()]
    found = sorted(found or [name.removeprefix(phase) for name in folders if name.startswith(phase)])
    if len(found) < 2 or any("," in name for name in found):
        raise UserError(
            f"{str(dataroot)!r} has {', '.join(map(repr, found)) or 'no folders'} for the phase {phase}, but "
            "at least two domains are needed, without commas in their names: lay them out as "
            f"{phase}/cat, {phase}/dog or {phase}A, {phase}B, or name some with --domains"
        )
    return found


# ---- whether a resumed training sees the same files ----

Fingerprint = Mapping[str, Mapping[str, object]]  # domain -> {"images": count, "names": hash of the names}


def fingerprint(files: Mapping[str, Sequence[str]], dataroot: str | Path) -> Fingerprint:
    """The files of each domain: their count, and a hash of their names under `dataroot`."""
    found = {}
    for domain, paths in files.items():
        names = "\0".join(os.path.relpath(path, dataroot) for path in paths)
        digest = hashlib.blake2b(os.fsencode(names), digest_size=16).hexdigest()
        found[domain] = {"images": len(paths), "names": digest}
    return found


def changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    """One line per domain whose files are not those of `before`."""
    lines = []
    for domain in sorted({*before, *now}):
        there, here = before.get(domain, {}), now.get(domain, {})
        before_count, count = there.get("images", 0), here.get("images", 0)
        if count != before_count:
            lines.append(f"domain {domain}: {before_count} images there, {count} now")
        elif there != here:
            lines.append(f"domain {domain}: {count} images as there, but with other names")
    return lines
