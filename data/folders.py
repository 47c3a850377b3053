"""Where the images of a data set are under --dataroot, and how to get a data set."""

from __future__ import annotations

from pathlib import Path

from util.errors import UserError

HOW_TO_GET_ONE = """To get one:
  download one      bash datasets/download_qsattn_dataset.sh horse2zebra
  or draw a small   python datasets/make_stripes.py
                    and give --dataroot ./datasets/stripes"""


def domain_folders(dataroot: str | Path, phase: str, direction: str = "AtoB") -> tuple[Path, Path]:
    """The folders of source and target of an unpaired set: trainA, trainB; testA, testB (else valA, valB).

    direction "BtoA" exchanges them. Raises `UserError` if the source does not exist; the target may not
    exist.
    """
    source, _, target = direction.partition("to")
    phase = _phase_with(dataroot, phase, source)
    return Path(dataroot, phase + source), Path(dataroot, phase + target)


def paired_folder(dataroot: str | Path, phase: str) -> Path:
    """The folder of side-by-side pairs: train; test (else val). Raises `UserError` if there is none."""
    return Path(dataroot, _phase_with(dataroot, phase, ""))


def single_folder(dataroot: str | Path) -> Path:
    """--dataroot itself, as a folder of images. Raises `UserError` if it does not exist."""
    if not Path(dataroot).is_dir():
        raise UserError(f"no folder of images at {str(dataroot)!r}. Check --dataroot.")
    return Path(dataroot)


def _phase_with(dataroot: str | Path, phase: str, domain: str) -> str:
    phases = ("test", "val") if phase == "test" else (phase,)
    for candidate in phases:
        if Path(dataroot, candidate + domain).is_dir():
            return candidate
    names = " or ".join(f"{candidate}{domain}" for candidate in phases)
    if not Path(dataroot).is_dir():
        raise UserError(f"no data set at {str(dataroot)!r}: there is no such folder. {HOW_TO_GET_ONE}")
    there = sorted(path.name for path in Path(dataroot).iterdir() if path.is_dir())[:12]
    found = ", ".join(map(repr, there)) or "no folders"
    raise UserError(
        f"no folder {names} in the data set {str(dataroot)!r}, which has {found}. "
        f"Check --dataroot, --phase and --dataset_mode. {HOW_TO_GET_ONE}"
    )
